package main

import (
	"github.com/spf13/cobra"

	"podstead/engine/handler/shim"
)

// shimCommand is what stands for a container of a containerd shim under the
// supervisor. Nobody else calls it.
func shimCommand() *cobra.Command {
	var await bool
	cmd := &cobra.Command{
		Use: "shim FILE", Hidden: true, Args: cobra.ExactArgs(1),
		Short: "Stand for a container that a containerd shim runs",
		RunE: func(_ *cobra.Command, args []string) error {
			if await {
				return shim.Await(args[0])
			}
			if code := shim.Run(args[0]); code != 0 {
				return exitError(code)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&await, "await", false, "wait at the fifo FILE for a process that is being started")
	return cmd
}
