// Package ctl is the debugging command line of a CRI runtime, ours or any
// other: the verbs, flags and tables of crictl, in the one binary that is on the
// node. As crictl's, its general flags stand before the verb, which may have
// others of the same name: the root command must have TraverseChildren set. It speaks to the runtime through cri.Runtime over its socket, keeps
// nothing, and is called by cmd/podstead.
//
// Not there, and refused by name as unknown: update, run and
// the configuration file.
package ctl

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"podstead/cri/remote"
)

// session is what the verbs share: the endpoint, and where to print.
type session struct {
	endpoint string
	timeout  time.Duration
}

// verb is what a subcommand does with a runtime.
type verb func(ctx context.Context, r *remote.Runtime, out io.Writer, args []string) error

// Command returns the command with all its verbs. socket gives the endpoint
// that is used when the user names none; it is called when a verb runs.
func Command(socket func() string) *cobra.Command {
	s := &session{}
	cmd := &cobra.Command{
		Use:   "ctl",
		Short: "Look into a CRI runtime, with the verbs of crictl",
		Args:  cobra.NoArgs,
		PersistentPreRun: func(*cobra.Command, []string) {
			if s.endpoint == "" {
				s.endpoint = socket()
			}
		},
	}
	f := cmd.Flags()
	f.StringVarP(&s.endpoint, "runtime-endpoint", "r", "", "`unix:///…` socket of the runtime (default: this instance's)")
	f.StringP("image-endpoint", "i", "", "accepted for crictl's sake; images are the runtime's")
	f.DurationVarP(&s.timeout, "timeout", "t", 2*time.Minute, "how long a call may take, pulls and streams excepted")
	for _, c := range []*cobra.Command{
		versionCommand(s), infoCommand(s),
		podsCommand(s), psCommand(s), imagesCommand(s), imageFsCommand(s),
		inspectCommand(s), inspectPodCommand(s), inspectImageCommand(s),
		pullCommand(s), runPodCommand(s), createCommand(s), startCommand(s),
		stopCommand(s), stopPodCommand(s), removeCommand(s), removePodCommand(s), removeImageCommand(s),
		execCommand(s), attachCommand(s), portForwardCommand(s), logsCommand(s),
		statsCommand(s), podStatsCommand(s), podMetricsCommand(s), metricDescriptorsCommand(s), eventsCommand(s),
		checkpointCommand(s),
	} {
		cmd.AddCommand(c)
	}
	return cmd
}

// run makes a subcommand's function of a verb, with a time limit.
func (s *session) run(do verb) func(*cobra.Command, []string) error {
	return s.runUnlimited(func(ctx context.Context, r *remote.Runtime, out io.Writer, args []string) error {
		ctx, cancel := context.WithTimeout(ctx, s.timeout)
		defer cancel()
		return do(ctx, r, out, args)
	})
}

// runUnlimited is run for what may take as long as it takes.
func (s *session) runUnlimited(do verb) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		r, err := remote.New(s.endpoint)
		if err != nil {
			return err
		}
		defer r.Close()
		return do(cmd.Context(), r, cmd.OutOrStdout(), args)
	}
}

// each does something with each of several arguments, and goes on after an
// error, so that one that is gone does not keep the rest.
func each(args []string, do func(id string) error) error {
	var failed error
	for _, arg := range args {
		if err := do(arg); err != nil {
			if failed != nil {
				return fmt.Errorf("%w; %s: %w", failed, arg, err)
			}
			failed = fmt.Errorf("%s: %w", arg, err)
		}
	}
	return failed
}

// table prints rows in columns, under a head.
func table(out io.Writer, head []string, rows [][]string) error {
	w := tabwriter.NewWriter(out, 4, 0, 3, ' ', 0)
	for _, row := range append([][]string{head}, rows...) {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, cell)
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// short is an id as tables show it, and as users may write it.
func short(id string) string {
	if len(id) > 7 && id[:7] == "sha256:" {
		id = id[7:]
	}
	return id[:min(13, len(id))]
}

// ago says how long ago a time was, in nanoseconds since 1970.
func ago(nanoseconds int64) string {
	d := time.Since(time.Unix(0, nanoseconds))
	switch {
	case d < time.Second:
		return "Less than a second ago"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d seconds ago", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d minutes ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d hours ago", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days ago", int(d.Hours()/24))
	}
}

// size prints a number of bytes with a decimal unit.
func size(bytes uint64) string {
	const unit = 1000
	n, prefixes := float64(bytes), "kMGTPE"
	if n < unit {
		return fmt.Sprintf("%.0fB", n)
	}
	i := -1
	for ; n >= unit && i < len(prefixes)-1; i++ {
		n /= unit
	}
	return fmt.Sprintf("%.4g%cB", n, prefixes[i])
}
