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
	"podstead/supervisor"
)

// hooksOf tells whether a container has hooks that the built-in handler runs:
// those of its creation. Others are refused by name: they would have to run
// whichever engine or supervisor is there at that moment.
func hooksOf(s *specs.Spec) (bool, error) {
	if s.Hooks == nil {
		return false, nil
	}
	if err := hook.Check(s.Hooks); err != nil {
		return false, err
	}
	some := false
	for _, k := range hook.Kinds(s.Hooks) {
		if len(k.Hooks) == 0 {
			continue
		}
		switch {
		case k.Name == "createContainer" && hasUserNamespace(s):
			// The mount namespace's owner may not reach the bundle.
			return false, fmt.Errorf("hooks.%s: not supported in a pod with a user namespace", k.Name)
		case k.Name == "prestart", k.Name == "createRuntime", k.Name == "createContainer":
			some = true
		default:
			return false, fmt.Errorf("hooks.%s: not supported", k.Name)
		}
	}
	return some, nil
}

func hasUserNamespace(s *specs.Spec) bool {
	return slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace })
}

// launchWithHooks launches a container whose process stops when its namespaces
// and mounts are there, and runs the hooks then. Its root is at rootfs in the
// bundle, in the container's own mount namespace.
func (b *Builtin) launchWithHooks(ctx context.Context, l supervisor.Launch, c Container) (supervisor.Process, error) {
	if err := os.Mkdir(filepath.Join(c.Bundle, c.Spec.Root.Path), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return supervisor.Process{}, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return supervisor.Process{}, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "hooks")
	defer theirs.Close()
	if err := unix.SetNonblock(fds[0], true); err != nil { // so that closing it ends a read
		unix.Close(fds[0])
		return supervisor.Process{}, os.NewSyscallError("fcntl", err)
	}
	ours := os.NewFile(uintptr(fds[0]), "hooks")
	l.Hooks = theirs
	// A creation that is given up ends its hooks, too.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ran := make(chan error, 1)
	go func() { ran <- answerHooks(ctx, ours, c) }()
	p, _, err := b.launch(ctx, l, nil)
	cancel()
	ours.Close()
	if hookErr := <-ran; hookErr != nil && err != nil {
		err = hookErr // the supervisor only repeats it
	}
	return p, err
}

// answerHooks waits until the container's process has come so far, runs the
// hooks and tells the supervisor what became of them.
func answerHooks(ctx context.Context, s *os.File, c Container) error {
	buf := make([]byte, 32)
	n, err := s.Read(buf)
	if err != nil {
		return nil // the launch has failed before, or had nothing to wait for
	}
	pid, err := strconv.Atoi(string(buf[:n]))
	if err != nil {
		return fmt.Errorf("hooks: the supervisor said %q", buf[:n])
	}
	err = runHooks(ctx, c, pid)
	answer := supervisor.HooksDone
	if err != nil {
		answer = err.Error()
	}
	if _, werr := s.WriteString(answer); err == nil && werr != nil {
		err = fmt.Errorf("hooks: %w", werr)
	}
	return err
}

func runHooks(ctx context.Context, c Container, pid int) error {
	h := c.Spec.Hooks
	state := specs.State{
		Version: specs.Version, ID: c.ID, Status: specs.StateCreated, Pid: pid,
		Bundle: c.Bundle, Annotations: c.Spec.Annotations,
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
