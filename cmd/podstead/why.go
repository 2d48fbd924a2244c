package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"podstead/agent/client"
)

func whyCommand(opt *options) *cobra.Command {
	var namespace string
	var calls bool
	cmd := &cobra.Command{
		Use:   "why POD",
		Short: "Tell what a pod waits for, what happens next, and where its time went",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := opt.client()
			defer c.Close()
			why, err := c.Why(cmd.Context(), namespace, args[0])
			if err != nil {
				return err
			}
			flight, err := c.Flight(cmd.Context(), namespace, args[0])
			if err != nil {
				return err
			}
			return tellWhy(cmd.OutOrStdout(), why, flight, calls)
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", defaultNamespace, "`NAMESPACE` of the pod")
	cmd.Flags().BoolVar(&calls, "calls", false, "show the calls of the runtime, too")
	return cmd
}

// tellWhy prints what a pod is at, and its flight recorder as a waterfall.
func tellWhy(out io.Writer, why client.Why, flight []client.FlightEntry, calls bool) error {
	fmt.Fprintf(out, "%s, for %s\n", why.Stage, age(why.Since))
	for _, wait := range why.Waiting {
		fmt.Fprintf(out, "waits: %s\n", describeWait(wait))
	}
	if why.Next != "" {
		fmt.Fprintf(out, "next: %s\n", why.Next)
	}
	var shown []client.FlightEntry
	for _, e := range flight {
		if calls || e.Kind != client.FlightCall {
			shown = append(shown, e)
		}
	}
	if len(shown) == 0 {
		return nil
	}
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, act := range acts(shown) {
		begun, longest := act[0].At, time.Duration(0)
		for _, e := range act {
			longest = max(longest, e.At.Add(e.Took).Sub(begun))
		}
		fmt.Fprintf(w, "%s\n", begun.Local().Format(time.DateTime))
		for _, e := range act {
			fmt.Fprintf(w, "  +%s\t%s\t%s\t%s\n", short(e.At.Sub(begun)), describeEntry(e), short(e.Took), bar(e.At.Sub(begun), e.Took, longest))
		}
	}
	return w.Flush()
}

// acts parts entries where nothing happened for a while, and puts them in the
// order in which they began.
func acts(entries []client.FlightEntry) (out [][]client.FlightEntry) {
	const pause = 5 * time.Second
	entries = slices.Clone(entries)
	slices.SortStableFunc(entries, func(a, b client.FlightEntry) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(b.Took, a.Took))
	})
	var end time.Time
	for i, e := range entries {
		if i == 0 || e.At.Sub(end) > pause {
			out = append(out, nil)
		}
		out[len(out)-1] = append(out[len(out)-1], e)
		if t := e.At.Add(e.Took); t.After(end) {
			end = t
		}
	}
	return out
}

func describeEntry(e client.FlightEntry) string {
	text := e.What
	if e.Container != "" {
		text = e.Container + ": " + text
	}
	if e.Kind == client.FlightCall {
		text = "  " + text
	}
	if e.Error != "" {
		text += " FAILED: " + strings.ReplaceAll(e.Error, "\n", " ")
	}
	return text
}

// short prints a duration with three digits.
func short(d time.Duration) string {
	switch {
	case d <= 0:
		return ""
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

// bar draws an entry at its place in its act.
func bar(begin, took, all time.Duration) string {
	const width = 40
	if all <= 0 {
		return ""
	}
	at := int(int64(begin) * width / int64(all))
	n := max(int(int64(took)*width/int64(all)), 1)
	return strings.Repeat(" ", min(at, width-1)) + strings.Repeat("▇", min(n, width-min(at, width-1)))
}
