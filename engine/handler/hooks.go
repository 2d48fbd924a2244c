package handler

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/oci/hook"
	"podstead/oci/netdevice"
	"podstead/supervisor"
)

// checkHooks finds what cannot be run, by name.
func checkHooks(s *specs.Spec) error {
	if s.Hooks == nil {
		return nil
	}
	if len(s.Hooks.CreateContainer) > 0 && hasUserNamespace(s) {
		// The mount namespace's owner may not reach the bundle.
		return errors.New("hooks.createContainer: not supported in a pod with a user namespace")
	}
	return hook.Check(s.Hooks)
}

// checkNetDevices refuses what is no device, or could only stay where it is.
func checkNetDevices(s *specs.Spec) error {
	if len(s.Linux.NetDevices) == 0 {
		return nil
	}
	if !slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace }) {
		return errors.New("linux.netDevices: the pod has the host's network, where they are already")
	}
	if err := netdevice.Check(s.Linux.NetDevices); err != nil {
		return fmt.Errorf("linux.%w", err)
	}
	return nil
}

// waitsAtCreation tells whether a container's process stops for others when its
// namespaces and mounts are there.
func waitsAtCreation(s *specs.Spec) bool {
	h := s.Hooks
	//nolint:staticcheck // prestart is deprecated, but widely used
	return len(s.Linux.NetDevices) > 0 || h != nil && len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer) > 0
}

// Hooked is a Handler that leaves hooks after the creation to its caller: it must
// be given the specification for Start, and told when the container has ended.
type Hooked interface {
	// Poststop runs the hooks of the end of a container, of which no process is
	// left; the error is for the log.
	Poststop(context.Context, Container) error
}

var _ Hooked = (*Builtin)(nil)

// HasLateHooks tells whether there is something to run after the creation:
// Start and Poststop need the specification then.
func HasLateHooks(s *specs.Spec) bool {
	return s.Hooks != nil && len(s.Hooks.StartContainer)+len(s.Hooks.Poststart)+len(s.Hooks.Poststop) > 0
}

func hasUserNamespace(s *specs.Spec) bool {
	return s.Linux != nil && slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace })
}

// launchWithHooks launches a container whose process stops when its namespaces
// and mounts are there, and runs the hooks then. Its root is at rootfs in the
// bundle, in the container's own mount namespace.
func (b *Builtin) launchWithHooks(ctx context.Context, l supervisor.Launch, c Container) (p supervisor.Process, err error) {
	if err := os.Mkdir(filepath.Join(c.Bundle, c.Spec.Root.Path), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return p, err
	}
	launch := func(ctx context.Context, theirs *os.File) error {
		l.Hooks = theirs
		p, _, err = b.launch(ctx, l, nil)
		return err
	}
	return p, stopping(ctx, launch, func(ctx context.Context, pid int) error { return creationHooks(ctx, c, pid) })
}

// startWithHooks releases a container's process, which stops before its execve
// if there are startContainer hooks. After an error the process, if there is one,
// must be killed.
func (b *Builtin) startWithHooks(ctx context.Context, c Container) (p supervisor.Process, err error) {
	h := c.Spec.Hooks
	start := func(ctx context.Context, theirs *os.File) error {
		p, err = b.Supervisor.StartWithHooks(ctx, c.ID, theirs)
		return err
	}
	err = stopping(ctx, start, func(ctx context.Context, pid int) error {
		return hook.Inside(ctx, c.Spec, "startContainer", h.StartContainer, pid, stateOf(c, specs.StateCreated, pid))
	})
	if err != nil {
		return p, err
	}
	return p, hook.Run(ctx, "poststart", h.Poststart, stateOf(c, specs.StateRunning, p.Pid))
}

// Poststop runs the hooks of a container's end. Each gets its turn, whatever
// comes of the others (runtime-spec, lifecycle).
func (b *Builtin) Poststop(ctx context.Context, c Container) error {
	var errs []error
	for i, h := range c.Spec.Hooks.Poststop {
		if out, err := hook.RunOne(ctx, h, stateOf(c, specs.StateStopped, 0)); err != nil {
			errs = append(errs, hook.Error("poststop", i, h, err, out))
		}
	}
	return errors.Join(errs...)
}

// stateOf is what hooks read.
func stateOf(c Container, status specs.ContainerState, pid int) specs.State {
	return specs.State{Version: specs.Version, ID: c.ID, Status: status, Pid: pid, Bundle: c.Bundle, Annotations: c.Spec.Annotations}
}

// stopping asks the supervisor for something during which a process stops, and
// does what is to be done then. If the asking is given up, so is that.
func stopping(ctx context.Context, ask func(ctx context.Context, theirs *os.File) error, do func(ctx context.Context, pid int) error) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "hooks")
	defer theirs.Close()
	if err := unix.SetNonblock(fds[0], true); err != nil { // so that closing it ends a read
		unix.Close(fds[0])
		return os.NewSyscallError("fcntl", err)
	}
	ours := os.NewFile(uintptr(fds[0]), "hooks")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ran := make(chan error, 1)
	go func() { ran <- answer(ctx, ours, do) }()
	err = ask(ctx, theirs)
	cancel()
	ours.Close()
	if doErr := <-ran; doErr != nil && err != nil {
		err = doErr // the supervisor only repeats it
	}
	return err
}

// answer waits until the process has come so far, and tells the supervisor what
// became of what was to be done.
func answer(ctx context.Context, s *os.File, do func(context.Context, int) error) error {
	buf := make([]byte, 32)
	n, err := s.Read(buf)
	if err != nil {
		return nil // it has failed before, or had nothing to stop for
	}
	pid, err := strconv.Atoi(string(buf[:n]))
	if err != nil {
		return fmt.Errorf("hooks: the supervisor said %q", buf[:n])
	}
	err = do(ctx, pid)
	say := supervisor.HooksDone
	if err != nil {
		say = err.Error()
	}
	if _, werr := s.WriteString(say); err == nil && werr != nil {
		err = fmt.Errorf("hooks: %w", werr)
	}
	return err
}

func creationHooks(ctx context.Context, c Container, pid int) error {
	if err := netdevice.Move(c.Spec.Linux.NetDevices, fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil {
		return err
	}
	h, state := c.Spec.Hooks, stateOf(c, specs.StateCreating, pid)
	if h == nil {
		return nil
	}
	//nolint:staticcheck // prestart is deprecated, but widely used
	if err := hook.Run(ctx, "prestart", h.Prestart, state); err != nil {
		return err
	}
	if err := hook.Run(ctx, "createRuntime", h.CreateRuntime, state); err != nil {
		return err
	}
	return hook.Inside(ctx, c.Spec, "createContainer", h.CreateContainer, pid, state)
}
