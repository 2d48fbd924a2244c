package main

import (
	"io"
	"time"

	"github.com/spf13/cobra"

	"podstead/agent/client"
)

func logsCommand(opt *options) *cobra.Command {
	var (
		namespace string
		o         client.LogOptions
		tail      int64
	)
	cmd := &cobra.Command{
		Use:   "logs POD",
		Short: "Print the log of a pod's container",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if tail >= 0 {
				o.TailLines = &tail
			}
			c := opt.client()
			defer c.Close()
			if err := chooseContainer(cmd.Context(), c, namespace, args[0], &o.Container, cmd.ErrOrStderr()); err != nil {
				return err
			}
			r, err := c.Logs(cmd.Context(), namespace, args[0], o)
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = io.Copy(cmd.OutOrStdout(), r)
			if cmd.Context().Err() != nil {
				return nil // told to stop following
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVarP(&namespace, "namespace", "n", defaultNamespace, "`NAMESPACE` of the pod")
	f.StringVarP(&o.Container, "container", "c", "", "`NAME` of the container; the first one if not given")
	f.BoolVarP(&o.Follow, "follow", "f", false, "go on with what is written from now on")
	f.BoolVarP(&o.Previous, "previous", "p", false, "of the container's previous instance")
	f.BoolVar(&o.Timestamps, "timestamps", false, "begin each line with its time")
	f.Int64Var(&tail, "tail", -1, "only the last `N` lines")
	f.DurationVar(&o.Since, "since", 0*time.Second, "only what is younger than this `DURATION`")
	return cmd
}
