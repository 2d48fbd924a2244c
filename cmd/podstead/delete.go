package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"podstead/agent/client"
)

func deleteCommand(opt *options) *cobra.Command {
	var (
		namespace string
		grace     int
		wait      bool
	)
	cmd := &cobra.Command{
		Use:   "delete pod NAME",
		Short: "End a pod that was applied",
		Args:  podArgs("delete"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := opt.client()
			defer c.Close()
			if err := c.DeletePod(cmd.Context(), namespace, args[1], graceFlag(grace)); err != nil {
				return err
			}
			if wait {
				if err := awaitGone(cmd.Context(), c, namespace, args[1]); err != nil {
					return err
				}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "pod %s/%s deleted\n", namespace, args[1])
			return nil
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", defaultNamespace, "`NAMESPACE` of the pod")
	cmd.Flags().IntVar(&grace, "grace-period", -1, "`SECONDS` to end in; -1 means the pod's own")
	cmd.Flags().BoolVar(&wait, "wait", true, "return when the pod is gone")
	return cmd
}

// graceFlag is nil for a negative number of seconds.
func graceFlag(seconds int) *time.Duration {
	if seconds < 0 {
		return nil
	}
	d := time.Duration(seconds) * time.Second
	return &d
}

var errGone = errors.New("gone")

// awaitGone returns when the pod is no longer there.
func awaitGone(ctx context.Context, c *client.Client, namespace, name string) error {
	seen := false
	err := c.Watch(ctx, namespace, name, func(change client.Change) error {
		switch {
		case change.Pod != nil && change.Type != client.Gone:
			seen = true
		case change.Type == client.Gone, change.Type == client.Synced && !seen:
			return errGone
		}
		return nil
	})
	switch {
	case errors.Is(err, errGone), apierrors.IsNotFound(err):
		return nil
	case err == nil:
		return fmt.Errorf("the node went away while pod %s/%s was ending", namespace, name)
	}
	return err
}
