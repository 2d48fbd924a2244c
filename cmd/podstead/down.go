package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func downCommand(opt *options) *cobra.Command {
	var (
		files []string
		grace int
	)
	cmd := &cobra.Command{
		Use:   "down -f FILE…|-f DIR",
		Short: "End the pods of manifests and remove their other objects",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			manifests, err := readManifests(files, cmd.InOrStdin())
			if err != nil {
				return err
			}
			if err := opt.prepare(); err != nil {
				return err
			}
			c := opt.client()
			defer c.Close()
			result, err := c.Delete(ctx, manifests, graceFlag(grace))
			if err != nil {
				return err
			}
			if err := awaitAllGone(ctx, c, result); err != nil {
				return err
			}
			for _, o := range result.Objects {
				fmt.Fprintf(cmd.OutOrStdout(), "%s %s %s\n", o.Kind, podKey{o.Namespace, o.Name}, o.Action)
			}
			return opt.stopIdleNode(ctx, c)
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "`FILE` or directory of manifests; - is standard input; may be repeated")
	cmd.Flags().IntVar(&grace, "grace-period", -1, "`SECONDS` to end in; -1 means each pod's own")
	return cmd
}
