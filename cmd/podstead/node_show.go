package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	"podstead/agent/client"
)

func isNode(kind string) bool { return slices.Contains([]string{"node", "nodes", "no"}, kind) }

func printNodes(cmd *cobra.Command, c *client.Client, output string) error {
	list, err := c.Nodes(cmd.Context())
	if err != nil {
		return err
	}
	w := cmd.OutOrStdout()
	var names []string
	for _, n := range list.Items {
		names = append(names, "node/"+n.Name)
	}
	return printAs(w, output, list, names, func(wide bool) error { return nodeTable(w, list.Items, wide) })
}

func nodeTable(w io.Writer, nodes []corev1.Node, wide bool) error {
	header := []string{"NAME", "STATUS", "AGE", "VERSION"}
	if wide {
		header = append(header, "INTERNAL-IP", "OS-IMAGE", "KERNEL-VERSION", "CONTAINER-RUNTIME")
	}
	var rows [][]string
	for i := range nodes {
		n := &nodes[i]
		row := []string{n.Name, nodeStatus(n), age(n.CreationTimestamp.Time), n.Status.NodeInfo.KubeletVersion}
		if wide {
			info := n.Status.NodeInfo
			row = append(row, orNone(nodeIP(n)), orNone(info.OSImage), info.KernelVersion, info.ContainerRuntimeVersion)
		}
		rows = append(rows, row)
	}
	return table(w, header, rows)
}

func nodeIP(n *corev1.Node) string {
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			return a.Address
		}
	}
	return ""
}

// nodeStatus names what is wrong with a node, too.
func nodeStatus(n *corev1.Node) string {
	status := []string{"Unknown"}
	for _, c := range n.Status.Conditions {
		switch {
		case c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue:
			status[0] = "Ready"
		case c.Type == corev1.NodeReady:
			status[0] = "NotReady"
		case c.Status == corev1.ConditionTrue:
			status = append(status, string(c.Type))
		}
	}
	return strings.Join(status, ",")
}

func describeNode(cmd *cobra.Command, c *client.Client) error {
	nodes, err := c.Nodes(cmd.Context())
	if err != nil {
		return err
	}
	pods, err := c.Pods(cmd.Context(), "")
	if err != nil {
		return err
	}
	problems, err := c.Problems(cmd.Context())
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	for i := range nodes.Items {
		n := &nodes.Items[i]
		fmt.Fprintf(w, "Name:\t%s\n", n.Name)
		for _, a := range n.Status.Addresses {
			fmt.Fprintf(w, "%s:\t%s\n", a.Type, a.Address)
		}
		info := n.Status.NodeInfo
		fmt.Fprintf(w, "System:\t%s, %s, %s\nRuntime:\t%s\nVersion:\t%s\n", info.OSImage, info.KernelVersion, info.Architecture, info.ContainerRuntimeVersion, info.KubeletVersion)
		fmt.Fprintln(w, "Conditions:")
		for _, c := range n.Status.Conditions {
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", c.Type, c.Status, c.Reason, c.Message)
		}
		describeResources(w, n, pods.Items)
		describeProblems(w, problems)
		events, err := c.NodeEvents(cmd.Context(), n.Name)
		if err != nil {
			return err
		}
		describeEvents(w, events.Items)
	}
	return w.Flush()
}

// describeResources shows what the node has, what pods may have of it, and what
// they request.
func describeResources(w *tabwriter.Writer, n *corev1.Node, pods []corev1.Pod) {
	requested, limits, count := corev1.ResourceList{}, corev1.ResourceList{}, 0
	for i := range pods {
		p := &pods[i]
		if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		count++
		sum(requested, resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{}))
		sum(limits, resourcehelper.PodLimits(p, resourcehelper.PodResourcesOptions{}))
	}
	requested[corev1.ResourcePods] = *resource.NewQuantity(int64(count), resource.DecimalSI)
	fmt.Fprintln(w, "Resources:\tcapacity\tallocatable\trequested\tlimits")
	var names []string
	for name := range n.Status.Capacity {
		names = append(names, string(name))
	}
	slices.Sort(names)
	for _, name := range names {
		of := func(list corev1.ResourceList) string {
			q := list[corev1.ResourceName(name)]
			return q.String()
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\n", name, of(n.Status.Capacity), of(n.Status.Allocatable), of(requested), of(limits))
	}
}

func sum(to, list corev1.ResourceList) {
	for name, q := range list {
		have := to[name]
		have.Add(q)
		to[name] = have
	}
}
