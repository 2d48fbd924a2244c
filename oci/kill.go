package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"podstead/sys"
)

// Kill sends a signal to the container's process, or with all to every process
// of its cgroup. SIGKILL reaches all processes anyhow: by the end of the pid
// namespace, or where the container has none of its own, by the cgroup.
func (r *Runtime) Kill(ctx context.Context, id string, sig unix.Signal, all bool) error {
	c, err := r.load(id)
	if err != nil {
		return err
	}
	if all {
		return c.killAll(ctx, sig)
	}
	status, err := c.need("kill", specs.StateRunning, specs.StateCreated, statusPaused)
	if err != nil {
		return err
	}
	if sig == unix.SIGKILL && !c.PrivatePids {
		return c.killAll(ctx, sig)
	}
	if err := c.signal(sig); err != nil {
		return fmt.Errorf("kill container %s: %w", id, err)
	}
	if sig == unix.SIGKILL && status == statusPaused {
		return c.group().Thaw(ctx) // on cgroup v1 a frozen process does not die
	}
	return nil
}

// signal sends a signal to the container's process and to no later one with
// its number.
func (c *container) signal(sig unix.Signal) error {
	pidfd, err := sys.OpenPidfd(c.Pid, c.StartTime)
	if err != nil {
		return err
	}
	defer pidfd.Close()
	return os.NewSyscallError("pidfd_send_signal", unix.PidfdSendSignal(int(pidfd.Fd()), sig, nil, 0))
}

// killAll signals every process of the container's cgroup. Other signals than
// SIGKILL reach those that are there at that moment.
func (c *container) killAll(ctx context.Context, sig unix.Signal) error {
	if !c.hasGroup() {
		return c.killFirst(ctx, sig)
	}
	g := c.group()
	if sig == unix.SIGKILL {
		return g.Kill(ctx)
	}
	pids, err := g.Procs()
	if err != nil {
		return err
	}
	var errs []error
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
			errs = append(errs, fmt.Errorf("kill process %d of container %s: %w", pid, c.ID, err))
		}
	}
	return errors.Join(errs...)
}

// killFirst signals the first process of a container that has no control group,
// which is all that can be found, and after SIGKILL waits until it is gone.
func (c *container) killFirst(ctx context.Context, sig unix.Signal) error {
	if c.Pid == 0 {
		return nil
	}
	err := c.signal(sig)
	for err == nil && sig == unix.SIGKILL && c.alive() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	if errors.Is(err, os.ErrProcessDone) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// parseSignal reads "9", "KILL", "SIGKILL", "sigkill" or "RTMIN+3".
func parseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 0 || n > 64 {
			return 0, fmt.Errorf("unknown signal %q", s)
		}
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	for base, n := range map[string]int{"SIGRTMIN": 34, "SIGRTMAX": 64} {
		rest, ok := strings.CutPrefix(name, base)
		if !ok {
			continue
		}
		offset := 0
		if rest != "" {
			var err error
			if offset, err = strconv.Atoi(rest); err != nil {
				break
			}
		}
		if n += offset; n >= 34 && n <= 64 {
			return unix.Signal(n), nil
		}
	}
	return 0, fmt.Errorf("unknown signal %q", s)
}

// killTimeout bounds how long a verb waits for killed processes to be gone.
const killTimeout = 10 * time.Second

func killCommand(cli *cli) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "kill CONTAINER [SIGNAL]",
		Short: "Send a signal, SIGTERM by default, to a container's process",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			sig := unix.SIGTERM
			if len(args) > 1 {
				var err error
				if sig, err = parseSignal(args[1]); err != nil {
					return err
				}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), killTimeout)
			defer cancel()
			return cli.runtime.Kill(ctx, args[0], sig, all)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "signal every process of the container's cgroup")
	return cmd
}
