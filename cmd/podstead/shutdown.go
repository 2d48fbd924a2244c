package main

import "github.com/spf13/cobra"

func shutdownCommand(opt *options) *cobra.Command {
	var cancel bool
	cmd := &cobra.Command{
		Use:   "shutdown",
		Short: "End all pods before the machine goes down, those of the highest priority last",
		Long: `Ends all pods gracefully, tier by tier as the KubeletConfiguration's shutdownGracePeriod fields
say, and starts none until the next boot. For the init system's stop script; where systemd-logind is
there, the node does this by itself if those fields are set.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := opt.client()
			defer c.Close()
			return c.Shutdown(cmd.Context(), cancel)
		},
	}
	cmd.Flags().BoolVar(&cancel, "cancel", false, "the machine stays up: let pods begin again")
	return cmd
}
