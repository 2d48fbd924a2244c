package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"podstead/oci/hook"
	"podstead/oci/launch"
	"podstead/sys"
)

// Start lets a created container's process go on to what it is for, and waits until
// it is ready if our caller wants to know that.
func (r *Runtime) Start(ctx context.Context, id string) error {
	n, err := r.start(ctx, id)
	if err != nil || n == nil {
		return err
	}
	if err := n.forward(); err != nil {
		return fmt.Errorf("start container %s: %w", id, err)
	}
	return nil
}

// start returns what is to be forwarded, nil for nothing.
func (r *Runtime) start(ctx context.Context, id string) (n *notifier, err error) {
	c, err := r.loadLocked(id)
	if err != nil {
		return nil, err
	}
	defer c.unlock()
	if _, err := c.need("start", specs.StateCreated); err != nil {
		return nil, err
	}
	spec, err := c.laterSpec()
	if err != nil {
		return nil, fmt.Errorf("start container %s: %w", id, err)
	}
	defer func() {
		if err != nil && n != nil {
			n.close()
			n = nil
		}
	}()
	if n, err = c.release(ctx, spec); err != nil {
		return n, fmt.Errorf("start container %s: %w", id, err)
	}
	if spec.Hooks == nil {
		return n, nil
	}
	if err := hook.Run(ctx, "poststart", spec.Hooks.Poststart, c.state(specs.StateRunning)); err != nil {
		return n, fmt.Errorf("start container %s: %w", id, errors.Join(err, c.killAll(ctx, unix.SIGKILL)))
	}
	return n, nil
}

// release connects to the waiting process and follows it to its execve.
// Whatever comes of it, the container is no longer "created" then.
func (c *container) release(ctx context.Context, spec *specs.Spec) (*notifier, error) {
	p, err := c.program()
	if err != nil {
		return nil, err
	}
	pidfd, err := sys.OpenPidfd(c.Pid, c.StartTime)
	if err != nil {
		return nil, err
	}
	defer pidfd.Close()
	n, err := c.notifier(pidfd)
	if err != nil {
		return nil, err
	}
	control, err := connect(c.dir())
	if err != nil {
		return n, err
	}
	child := launch.Adopt(p, c.Pid, c.StartTime, pidfd, control)
	child.AtPoint = func(child *launch.Child, at launch.Point) error { return c.hooksAt(ctx, spec, child, at) }
	child.AtListener = func(child *launch.Child, listener *os.File) error {
		return sendListener(spec.Linux.Seccomp, c.state(specs.StateCreated), child.Pid, listener)
	}
	if err = child.Start(); err != nil {
		waitEnd(pidfd)
	}
	return n, errors.Join(err, os.Remove(c.file(startSocket)))
}

// waitEnd waits for the end of a process that has failed to start: whoever deletes
// the container next must find it stopped.
func waitEnd(pidfd *os.File) {
	for deadline := time.Now().Add(killTimeout); time.Now().Before(deadline); {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}, int(time.Until(deadline).Milliseconds())+1)
		if err != unix.EINTR {
			return
		}
	}
}

func (c *container) program() (*launch.Program, error) {
	b, err := os.ReadFile(c.file(programFile))
	if err != nil {
		return nil, err
	}
	p := &launch.Program{}
	return p, p.UnmarshalBinary(b)
}

// listen makes the socket that a created container waits on. Its name is bound
// by way of the directory's descriptor: a socket's path may have 107 characters
// only.
func listen(dir string) (*os.File, error) {
	return startSocketAt(dir, func(fd int, at unix.Sockaddr) error {
		if err := unix.Bind(fd, at); err != nil {
			return err
		}
		return unix.Listen(fd, 1)
	})
}

// connect reaches the process that waits there.
func connect(dir string) (*os.File, error) {
	return startSocketAt(dir, unix.Connect)
}

func startSocketAt(dir string, do func(fd int, at unix.Sockaddr) error) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	name := fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), startSocket)
	if err := do(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "start socket", Path: filepath.Join(dir, startSocket), Err: err}
	}
	return os.NewFile(uintptr(fd), startSocket), nil
}

func startCommand(cli *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "start CONTAINER",
		Short: "Let a created container's process run",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return cli.runtime.Start(cmd.Context(), args[0])
		},
	}
}
