package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"podstead/agent/client"
)

func topCommand(opt *options) *cobra.Command {
	var namespace, sortBy string
	var containers, all bool
	cmd := &cobra.Command{
		Use:   "top pods [NAME…] | top node",
		Short: "Show what pods or the node use of cpu and memory",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || !slices.Contains([]string{"pods", "pod", "po"}, args[0]) && !isNode(args[0]) {
				return fmt.Errorf("say of what: pods or node")
			}
			if sortBy != "" && sortBy != "cpu" && sortBy != "memory" {
				return fmt.Errorf("--sort-by %q is not cpu or memory", sortBy)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c := opt.client()
			defer c.Close()
			if isNode(args[0]) {
				return topNode(cmd, c)
			}
			if all {
				namespace = ""
			}
			return topPods(cmd, c, namespace, args[1:], sortBy, containers)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&namespace, "namespace", "n", "", "only pods of this `NAMESPACE`")
	f.BoolVarP(&all, "all-namespaces", "A", false, "pods of all namespaces, as without --namespace")
	f.StringVar(&sortBy, "sort-by", "", "cpu or memory; by name if not given")
	f.BoolVar(&containers, "containers", false, "show each container")
	return cmd
}

// sampled is for how long the use of processors is looked at where nobody tells
// the rate.
const sampled = time.Second

// figures are two looks at what is used: rates are between them.
type figures struct{ before, now *stats.Summary }

func look(ctx context.Context, c *client.Client) (f figures, err error) {
	if f.before, err = c.Summary(ctx); err != nil {
		return f, err
	}
	f.now = f.before
	if !f.wants() {
		return f, nil
	}
	select {
	case <-time.After(sampled):
	case <-ctx.Done():
		return f, ctx.Err()
	}
	f.now, err = c.Summary(ctx)
	return f, err
}

// wants tells whether a rate is missing.
func (f figures) wants() bool {
	missing := func(c *stats.CPUStats) bool { return c != nil && c.UsageNanoCores == nil }
	if missing(f.now.Node.CPU) {
		return true
	}
	for i := range f.now.Pods {
		for j := range f.now.Pods[i].Containers {
			if missing(f.now.Pods[i].Containers[j].CPU) {
				return true
			}
		}
	}
	return false
}

// rate is in thousandths of a processor.
func rate(before, now *stats.CPUStats) int64 {
	switch {
	case now == nil:
		return 0
	case now.UsageNanoCores != nil:
		return int64(*now.UsageNanoCores / 1e6)
	case before == nil || before.UsageCoreNanoSeconds == nil || now.UsageCoreNanoSeconds == nil:
		return 0
	}
	took := now.Time.Sub(before.Time.Time)
	if took <= 0 || *now.UsageCoreNanoSeconds < *before.UsageCoreNanoSeconds {
		return 0
	}
	return int64(*now.UsageCoreNanoSeconds-*before.UsageCoreNanoSeconds) * 1000 / int64(took)
}

func memory(m *stats.MemoryStats) int64 {
	if m == nil || m.WorkingSetBytes == nil {
		return 0
	}
	return int64(*m.WorkingSetBytes)
}

// used is a line of the table.
type used struct {
	pod, container stats.PodReference
	cpu, memory    int64
}

func topPods(cmd *cobra.Command, c *client.Client, namespace string, names []string, sortBy string, each bool) error {
	f, err := look(cmd.Context(), c)
	if err != nil {
		return err
	}
	var list []used
	for i := range f.now.Pods {
		p := &f.now.Pods[i]
		if namespace != "" && p.PodRef.Namespace != namespace || len(names) > 0 && !slices.Contains(names, p.PodRef.Name) {
			continue
		}
		total := used{pod: p.PodRef}
		for j := range p.Containers {
			ctr := &p.Containers[j]
			one := used{pod: p.PodRef, container: stats.PodReference{Name: ctr.Name}, cpu: rate(f.cpu(p.PodRef.UID, ctr.Name), ctr.CPU), memory: memory(ctr.Memory)}
			total.cpu += one.cpu
			total.memory += one.memory
			if each {
				list = append(list, one)
			}
		}
		if !each {
			list = append(list, total)
		}
	}
	for _, name := range names {
		if !slices.ContainsFunc(list, func(u used) bool { return u.pod.Name == name }) {
			return fmt.Errorf("pod %q is not found, or does not run", name)
		}
	}
	slices.SortStableFunc(list, func(a, b used) int {
		switch sortBy {
		case "cpu":
			return cmp.Compare(b.cpu, a.cpu)
		case "memory":
			return cmp.Compare(b.memory, a.memory)
		}
		return cmp.Or(cmp.Compare(a.pod.Namespace, b.pod.Namespace), cmp.Compare(a.pod.Name, b.pod.Name), cmp.Compare(a.container.Name, b.container.Name))
	})
	header := []string{"NAMESPACE", "POD"}
	if each {
		header = append(header, "CONTAINER")
	}
	var rows [][]string
	for _, u := range list {
		row := []string{u.pod.Namespace, u.pod.Name}
		if each {
			row = append(row, u.container.Name)
		}
		rows = append(rows, append(row, fmt.Sprintf("%dm", u.cpu), mebibytes(u.memory)))
	}
	return table(cmd.OutOrStdout(), append(header, "CPU(cores)", "MEMORY(bytes)"), rows)
}

// cpu is what a container had used at the first look, nil if it was not there.
func (f figures) cpu(uid, container string) *stats.CPUStats {
	for i := range f.before.Pods {
		if f.before.Pods[i].PodRef.UID != uid {
			continue
		}
		for j := range f.before.Pods[i].Containers {
			if c := &f.before.Pods[i].Containers[j]; c.Name == container {
				return c.CPU
			}
		}
	}
	return nil
}

func topNode(cmd *cobra.Command, c *client.Client) error {
	nodes, err := c.Nodes(cmd.Context())
	if err != nil {
		return err
	}
	f, err := look(cmd.Context(), c)
	if err != nil {
		return err
	}
	n := &nodes.Items[0]
	cpu, mem := rate(f.before.Node.CPU, f.now.Node.CPU), memory(f.now.Node.Memory)
	percent := func(used, of int64) string {
		if of <= 0 {
			return "-"
		}
		return fmt.Sprintf("%d%%", 100*used/of)
	}
	return table(cmd.OutOrStdout(), []string{"NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"}, [][]string{{
		n.Name, fmt.Sprintf("%dm", cpu), percent(cpu, n.Status.Allocatable.Cpu().MilliValue()),
		mebibytes(mem), percent(mem, n.Status.Allocatable.Memory().Value()),
	}})
}

func mebibytes(n int64) string { return fmt.Sprintf("%dMi", n>>20) }
