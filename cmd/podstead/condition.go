package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
)

func conditionCommand(opt *options) *cobra.Command {
	var namespace string
	var c corev1.PodCondition
	cmd := &cobra.Command{
		Use:   "condition POD TYPE=True|False|Unknown",
		Short: "Set a condition of a pod that one of its readiness gates waits for",
		Long: `Sets a condition in the status of a pod. A pod with readinessGates is ready when its containers
are and the condition of each gate is True; in a cluster, a controller sets them. The condition
stays, also when the node is started again or the machine, until the pod is deleted or begins anew.
The node's own conditions (Ready, Initialized, …) cannot be set.`,
		Example: `  podstead condition web example.com/in-load-balancer=True
  podstead condition web example.com/in-load-balancer=False --reason Draining --message "until noon"`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, value, ok := strings.Cut(args[1], "=")
			if !ok {
				return fmt.Errorf("%q is not TYPE=True|False|Unknown", args[1])
			}
			c.Type, c.Status = corev1.PodConditionType(name), corev1.ConditionStatus(value)
			api := opt.client()
			defer api.Close()
			return api.SetCondition(cmd.Context(), namespace, args[0], c)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&namespace, "namespace", "n", defaultNamespace, "`NAMESPACE` of the pod")
	f.StringVar(&c.Reason, "reason", "", "`REASON` of the condition, a word")
	f.StringVar(&c.Message, "message", "", "`MESSAGE` of the condition, for people")
	return cmd
}
