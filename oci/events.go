package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
)

// event is one line of "events", in runc's form.
type event struct {
	Type string `json:"type"`
	ID   string `json:"id"`
	Data any    `json:"data,omitempty"`
}

// Events writes what a running container uses, one JSON object a line: once, or
// at each interval until it stops, with an "oom" event whenever the kernel has
// killed a process for the memory limit.
func (r *Runtime) Events(ctx context.Context, id string, interval time.Duration, once bool, w io.Writer) error {
	c, err := r.load(id)
	if err != nil {
		return err
	}
	if _, err := c.need("show events of", specs.StateRunning, specs.StateCreated, statusPaused); err != nil {
		return err
	}
	enc := json.NewEncoder(w)
	var kills uint64
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		stats, err := c.stats()
		if err != nil {
			if !c.alive() {
				return nil
			}
			return err
		}
		if err := enc.Encode(event{"stats", id, stats}); err != nil || once {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if n, err := c.group().OOMKills(); err == nil && n > kills {
			kills = n
			if err := enc.Encode(event{Type: "oom", ID: id}); err != nil {
				return err
			}
		}
		if !c.alive() {
			return nil
		}
	}
}

func eventsCommand(cli *cli) *cobra.Command {
	var once bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "events CONTAINER",
		Short: "Show what a container uses, as JSON lines",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if interval <= 0 {
				return errors.New("--interval: must be above 0")
			}
			err := cli.runtime.Events(cmd.Context(), args[0], interval, once, cmd.OutOrStdout())
			if errors.Is(err, context.Canceled) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("events: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&once, "stats", false, "once")
	cmd.Flags().DurationVar(&interval, "interval", 5*time.Second, "time between two lines")
	return cmd
}
