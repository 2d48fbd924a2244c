package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"podstead/oci/launch"
	"podstead/supervisor/internal/protocol"
	"podstead/sys"
)

// runCommand has somebody else's program make the process. What that leaves
// behind when it ends is the supervisor's child, because it is the subreaper;
// and it stays one, even if it is dead at once, because nothing is swept while a
// launch is under way.
func runCommand(c *protocol.Command, stdio launch.Stdio) (f *Forked, err error) {
	if len(c.Run) == 0 {
		return nil, fmt.Errorf("launch: a command without arguments: %w", errInvalid)
	}
	console := -1
	if c.Console != "" {
		if console, err = listenConsole(c.Console); err != nil {
			return nil, err
		}
		defer os.Remove(c.Console)
		defer unix.Close(console)
	}
	first, err := spawn(c, c.Run, stdio)
	if err != nil {
		return nil, err
	}
	if c.PidFile == "" {
		f, err = first, nil
	} else if err = first.await(c.Run, c.Timeout); err == nil {
		f, err = orphan(c.PidFile)
	}
	if err != nil {
		return nil, err
	}
	if console >= 0 {
		f.Console, err = receiveConsole(console, c.Timeout)
	}
	if err == nil && len(c.Then) > 0 {
		var then *Forked
		if then, err = spawn(c, c.Then, launch.Stdio{}); err == nil {
			err = then.await(c.Then, c.Timeout)
		}
	}
	if err != nil {
		if f.Console != nil {
			f.Console.Close()
		}
		p := process{pidfd: f.Pidfd}
		return nil, errors.Join(err, p.kill())
	}
	return f, nil
}

// spawn executes one program of a command.
func spawn(c *protocol.Command, argv []string, stdio launch.Stdio) (*Forked, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	files := make([]uintptr, 3)
	for i, f := range []*os.File{stdio.Stdin, stdio.Stdout, stdio.Stderr} {
		if f == nil {
			f = null
		}
		files[i] = f.Fd()
	}
	pidfd := -1
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Dir: c.Dir, Env: c.Env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	})
	if err != nil {
		return nil, &os.PathError{Op: "exec", Path: argv[0], Err: err}
	}
	return watched(pid, pidfd)
}

// watched describes a child. It may be dead, but has not been reaped.
func watched(pid, pidfd int) (*Forked, error) {
	var err error
	if pidfd < 0 {
		if pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
			return nil, fmt.Errorf("open process %d: %w", pid, err)
		}
	}
	ticks, err := sys.StartTime(pid)
	if err != nil {
		unix.Close(pidfd)
		return nil, err
	}
	return &Forked{Pid: pid, StartTicks: ticks, Pidfd: os.NewFile(uintptr(pidfd), "pidfd")}, nil
}

// await waits for the end of a program, which must be a success; after the
// timeout it is killed.
func (f *Forked) await(argv []string, timeout time.Duration) error {
	defer f.Pidfd.Close()
	fd, name := int(f.Pidfd.Fd()), strings.Join(argv[:min(len(argv), 2)], " ")
	deadline := time.Now().Add(timeout)
	var late error
	for {
		left := max(0, time.Until(deadline))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err == unix.EINTR {
			continue
		}
		if n == 0 || err != nil {
			late = fmt.Errorf("%s: does not end within %s: %w", name, timeout, os.ErrDeadlineExceeded)
			unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		break
	}
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PIDFD, fd, &info, unix.WEXITED, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for %s: %w", name, err)
		}
		break
	}
	if code, _ := siginfoExit(&info); late == nil && code != 0 {
		return fmt.Errorf("%s: exit status %d", name, code)
	}
	return late
}

// orphan takes over the process that a program has left to its subreaper.
func orphan(pidFile string) (*Forked, error) {
	b, err := os.ReadFile(pidFile)
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return nil, fmt.Errorf("%s: %q is no process", pidFile, b)
	}
	// Another's process could end without our knowing its exit code.
	err = unix.Waitid(unix.P_PID, pid, &unix.Siginfo{}, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	if err != nil {
		return nil, fmt.Errorf("process %d of %s is no child of the supervisor: %w", pid, filepath.Base(pidFile), err)
	}
	return watched(pid, -1)
}

// listenConsole makes a socket that only its owner can reach.
func listenConsole(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make socket: %w", err)
	}
	os.Remove(path)
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err == nil {
		if err = unix.Chmod(path, 0o600); err == nil {
			err = unix.Listen(fd, 1)
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("listen on %s: %w", path, err)
	}
	return fd, nil
}

// receiveConsole takes the pty's master that a program has sent.
func receiveConsole(listener int, timeout time.Duration) (*os.File, error) {
	wait := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(wait, int(timeout.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if n == 0 || err != nil {
			return nil, errors.Join(errors.New("no terminal came"), err)
		}
		break
	}
	conn, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	defer unix.Close(conn)
	unix.SetsockoptTimeval(conn, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})
	_, files, err := sys.RecvMsg(conn, make([]byte, 4096))
	if err != nil || len(files) != 1 {
		sys.CloseAll(files)
		return nil, errors.Join(fmt.Errorf("receive terminal: %d descriptors", len(files)), err)
	}
	return files[0], nil
}
