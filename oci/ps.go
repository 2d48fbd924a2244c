package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// Processes lists the processes of a container.
func (r *Runtime) Processes(id string) ([]int, error) {
	c, err := r.load(id)
	if err != nil {
		return nil, err
	}
	return c.group().Procs()
}

func psCommand(cli *cli) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "ps CONTAINER [PS-OPTION…]",
		Short: "Show a container's processes, as ps -ef or JSON",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pids, err := cli.runtime.Processes(args[0])
			if err != nil {
				return err
			}
			switch format {
			case "json":
				if pids == nil {
					pids = []int{}
				}
				return json.NewEncoder(cmd.OutOrStdout()).Encode(pids)
			case "table":
			default:
				return fmt.Errorf("--format: %q is neither table nor json", format)
			}
			options := args[1:]
			if len(options) == 0 {
				options = []string{"-ef"}
			}
			out, err := exec.CommandContext(cmd.Context(), "ps", options...).Output()
			if err != nil {
				return fmt.Errorf("ps %s: %w", strings.Join(options, " "), err)
			}
			table, err := filterProcesses(out, pids)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(table)
			return err
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringVarP(&format, "format", "f", "table", "table or json")
	return cmd
}

// filterProcesses keeps the lines of a ps table whose PID column is in pids.
func filterProcesses(table []byte, pids []int) ([]byte, error) {
	head, rest, _ := bytes.Cut(table, []byte("\n"))
	column := slices.Index(strings.Fields(string(head)), "PID")
	if column < 0 {
		return nil, errors.New("ps printed no PID column")
	}
	out := append(slices.Clone(head), '\n')
	for line := range bytes.Lines(rest) {
		f := strings.Fields(string(line))
		if len(f) <= column {
			continue
		}
		if pid, err := strconv.Atoi(f[column]); err == nil && slices.Contains(pids, pid) {
			out = append(out, line...)
		}
	}
	return out, nil
}
