package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/sys"
)

// A caller that has a $NOTIFY_SOCKET, as a unit of systemd's has, is told when the
// container is ready (sd_notify(3)). The container gets a socket of its own, as it
// does from runc: of what it says there, READY=1 alone is passed on, with the number
// of its process, and until it comes "start" does not return.

const (
	notifyVariable = "NOTIFY_SOCKET"
	notifyDir      = "notify"
	notifySocket   = "notify.sock"
	notifyInside   = "/run/notify" // where the container has notifyDir
)

// withNotify gives the container the directory in which "start" will make its
// socket. Where its mounts would be the host's, it gets none.
func (c *container) withNotify(spec *specs.Spec) error {
	if os.Getenv(notifyVariable) == "" || !hasPrivate(spec, specs.MountNamespace) {
		return nil
	}
	if err := os.Mkdir(c.file(notifyDir), 0o755); err != nil {
		return err
	}
	spec.Mounts = append(spec.Mounts[:len(spec.Mounts):len(spec.Mounts)], specs.Mount{
		Destination: notifyInside, Type: "bind", Source: c.file(notifyDir), Options: []string{"bind", "nosuid", "noexec", "nodev", "ro"},
	})
	p := *spec.Process
	p.Env = slices.DeleteFunc(slices.Clone(p.Env), func(e string) bool { return strings.HasPrefix(e, notifyVariable+"=") })
	p.Env = append(p.Env, notifyVariable+"="+notifyInside+"/"+notifySocket)
	spec.Process = &p
	return nil
}

// notifier is the container's socket, and whom to tell.
type notifier struct {
	socket *os.File
	pidfd  *os.File // of the container's process
	pid    int      // as MAINPID, 0 to tell none
	to     string
}

// notifier makes the container's socket, if it has a directory for one and somebody
// wants to know.
func (c *container) notifier(pidfd *os.File) (*notifier, error) {
	to := os.Getenv(notifyVariable)
	if to == "" {
		return nil, nil
	}
	dir, err := os.Open(c.file(notifyDir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	n := &notifier{socket: os.NewFile(uintptr(fd), notifySocket), pid: c.Pid, to: to}
	// By way of the directory's descriptor: a socket's path may have 107 characters.
	name := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), notifySocket)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: name})
	if err == nil {
		err = os.Chmod(name, 0o777) // for any user of the container's
	}
	if err == nil {
		n.pidfd, err = sys.Dup(pidfd)
	}
	if err != nil {
		n.close()
		return nil, &os.PathError{Op: "notify socket", Path: filepath.Join(dir.Name(), notifySocket), Err: err}
	}
	return n, nil
}

func (n *notifier) close() {
	n.socket.Close()
	if n.pidfd != nil {
		n.pidfd.Close()
	}
}

// forward waits until the container is ready, and says so, or until it has ended.
func (n *notifier) forward() error {
	defer n.close()
	buf := make([]byte, 4096)
	for {
		polled := []unix.PollFd{{Fd: int32(n.socket.Fd()), Events: unix.POLLIN}, {Fd: int32(n.pidfd.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(polled, -1); err != nil && err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
		got, err := unix.Read(int(n.socket.Fd()), buf)
		if err != nil {
			if polled[1].Revents != 0 {
				return nil
			}
			continue
		}
		if slices.Contains(strings.Split(string(buf[:got]), "\n"), "READY=1") {
			return n.tell()
		}
	}
}

func (n *notifier) tell() error {
	text := "READY=1\n"
	if n.pid != 0 {
		text += fmt.Sprintf("MAINPID=%d\n", n.pid)
	}
	if err := unix.Sendto(int(n.socket.Fd()), []byte(text), 0, &unix.SockaddrUnix{Name: n.to}); err != nil {
		return fmt.Errorf("$%s: send to %s: %w", notifyVariable, n.to, err)
	}
	return nil
}
