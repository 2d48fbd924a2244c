package ctl

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/remote"
)

func checkpointCommand(s *session) *cobra.Command {
	var location string
	cmd := &cobra.Command{
		Use: "checkpoint CONTAINER…", Short: "Write the state of running containers to an archive", Args: cobra.MinimumNArgs(1),
		RunE: s.runUnlimited(func(ctx context.Context, r *remote.Runtime, out io.Writer, args []string) error {
			if location == "" {
				return fmt.Errorf("--export is missing")
			}
			path, err := filepath.Abs(location)
			if err != nil {
				return err
			}
			if len(args) > 1 {
				return fmt.Errorf("--export %s is one file, and %d containers are given", location, len(args))
			}
			id := args[0]
			if _, err := r.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: path}); err != nil {
				return err
			}
			_, err = fmt.Fprintln(out, id)
			return err
		}),
	}
	cmd.Flags().StringVarP(&location, "export", "e", "", "`PATH` of the archive")
	return cmd
}
