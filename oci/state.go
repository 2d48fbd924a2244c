package oci

import (
	"encoding/json"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
)

// State is a container's state as "state" and "list" print it: the
// specification's with what runc adds.
type State struct {
	Version     string               `json:"ociVersion"`
	ID          string               `json:"id"`
	Pid         int                  `json:"pid"`
	Status      specs.ContainerState `json:"status"`
	Bundle      string               `json:"bundle"`
	Rootfs      string               `json:"rootfs"`
	Created     time.Time            `json:"created"`
	Annotations map[string]string    `json:"annotations,omitempty"`
	Owner       string               `json:"owner"`
}

// State tells about a container.
func (r *Runtime) State(id string) (State, error) {
	c, err := r.load(id)
	if err != nil {
		return State{}, err
	}
	status, err := c.status()
	if err != nil {
		return State{}, err
	}
	s := c.state(status)
	return State{
		Version: s.Version, ID: s.ID, Pid: s.Pid, Status: s.Status, Bundle: s.Bundle,
		Rootfs: c.Rootfs, Created: c.Created, Annotations: s.Annotations, Owner: c.Owner,
	}, nil
}

func stateCommand(cli *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "state CONTAINER",
		Short: "Print a container's state as JSON",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := cli.runtime.State(args[0])
			if err != nil {
				return err
			}
			enc := json.NewEncoder(cmd.OutOrStdout())
			enc.SetIndent("", "  ")
			return enc.Encode(s)
		},
	}
}
