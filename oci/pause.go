package oci

import (
	"context"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
)

// freezeTimeout bounds how long processes may take to stop: one in an
// uninterruptible wait does not.
const freezeTimeout = 10 * time.Second

// Pause stops all processes of a running container.
func (r *Runtime) Pause(ctx context.Context, id string) error {
	return r.setPaused(ctx, id, func(ctx context.Context, c *container) error {
		if _, err := c.need("pause", specs.StateRunning, specs.StateCreated); err != nil {
			return err
		}
		return c.group().Freeze(ctx)
	})
}

// Resume lets a paused container go on.
func (r *Runtime) Resume(ctx context.Context, id string) error {
	return r.setPaused(ctx, id, func(ctx context.Context, c *container) error {
		if _, err := c.need("resume", statusPaused); err != nil {
			return err
		}
		return c.group().Thaw(ctx)
	})
}

func (r *Runtime) setPaused(ctx context.Context, id string, do func(context.Context, *container) error) error {
	c, err := r.loadLocked(id)
	if err != nil {
		return err
	}
	defer c.unlock()
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	return do(ctx, c)
}

func pauseCommand(cli *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "pause CONTAINER",
		Short: "Stop all processes of a container for a while",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return cli.runtime.Pause(cmd.Context(), args[0])
		},
	}
}

func resumeCommand(cli *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "resume CONTAINER",
		Short: "Let a paused container go on",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return cli.runtime.Resume(cmd.Context(), args[0])
		},
	}
}
