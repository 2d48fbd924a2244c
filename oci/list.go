package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// List tells about all containers, sorted by ID. One that cannot be read is
// left out and logged.
func (r *Runtime) List() ([]State, error) {
	entries, err := os.ReadDir(r.Root)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []State
	for _, e := range entries {
		if !e.IsDir() || checkID(e.Name()) != nil {
			continue
		}
		s, err := r.State(e.Name())
		if errors.Is(err, ErrNotFound) { // deleted meanwhile, or not yet recorded
			continue
		}
		if err != nil {
			r.Log.Warn("container left out", "container", e.Name(), "error", err)
			continue
		}
		all = append(all, s)
	}
	return all, nil
}

func listCommand(cli *cli) *cobra.Command {
	var format string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List containers",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := cli.runtime.List()
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			switch {
			case quiet:
				for _, s := range all {
					fmt.Fprintln(out, s.ID)
				}
				return nil
			case format == "json":
				if all == nil {
					all = []State{}
				}
				return json.NewEncoder(out).Encode(all)
			case format != "table":
				return fmt.Errorf("--format: %q is neither table nor json", format)
			}
			w := tabwriter.NewWriter(out, 12, 1, 3, ' ', 0)
			fmt.Fprint(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER\n")
			for _, s := range all {
				fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", s.ID, s.Pid, s.Status, s.Bundle, s.Created.Format(time.RFC3339Nano), s.Owner)
			}
			return w.Flush()
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "table", "table or json")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print IDs only")
	return cmd
}
