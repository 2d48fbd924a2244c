package ctl

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/remote"
)

// sampling is how far apart the two samples are that tell the use of the CPU.
const sampling = time.Second

func statsCommand(s *session) *cobra.Command {
	filter := &runtimeapi.ContainerStatsFilter{}
	format := asTable
	cmd := &cobra.Command{
		Use: "stats [CONTAINER]", Short: "Print what running containers use", Args: cobra.MaximumNArgs(1),
		RunE: s.run(func(ctx context.Context, r *remote.Runtime, out io.Writer, args []string) error {
			if len(args) > 0 {
				filter.Id = args[0]
			}
			request := &runtimeapi.ListContainerStatsRequest{Filter: filter}
			before, err := r.ListContainerStats(ctx, request)
			if err != nil || format != asTable {
				return firstOf(err, func() error { return printMessage(out, before, format) })
			}
			if err := wait(ctx, sampling); err != nil {
				return err
			}
			after, err := r.ListContainerStats(ctx, request)
			if err != nil {
				return err
			}
			return printStats(out, before.GetStats(), after.GetStats())
		}),
	}
	f := cmd.Flags()
	f.StringVar(&filter.Id, "id", "", "only the container with this `ID`")
	f.StringVarP(&filter.PodSandboxId, "pod", "p", "", "only those of the pod with this `ID`")
	f.StringToStringVar(&filter.LabelSelector, "label", nil, "only those with these labels, `KEY=VALUE`")
	f.VarP(&format, "output", "o", "table, json or yaml")
	return cmd
}

// firstOf is err, or else what next returns.
func firstOf(err error, next func() error) error {
	if err != nil {
		return err
	}
	return next()
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func printStats(out io.Writer, before, after []*runtimeapi.ContainerStats) error {
	first := map[string]*runtimeapi.CpuUsage{}
	for _, c := range before {
		first[c.GetAttributes().GetId()] = c.GetCpu()
	}
	var rows [][]string
	for _, c := range after {
		id := c.GetAttributes().GetId()
		rows = append(rows, []string{short(id), c.GetAttributes().GetMetadata().GetName(), percent(first[id], c.GetCpu()),
			size(c.GetMemory().GetWorkingSetBytes().GetValue()), size(c.GetWritableLayer().GetUsedBytes().GetValue()),
			fmt.Sprint(c.GetWritableLayer().GetInodesUsed().GetValue())})
	}
	slices.SortFunc(rows, func(a, b []string) int { return cmp.Compare(a[1], b[1]) })
	return table(out, []string{"CONTAINER", "NAME", "CPU %", "MEM", "DISK", "INODES"}, rows)
}

// percent is the use of the CPU between two samples, of one core.
func percent(before, after *runtimeapi.CpuUsage) string {
	elapsed := after.GetTimestamp() - before.GetTimestamp()
	if before == nil || elapsed <= 0 {
		return "-"
	}
	used := float64(after.GetUsageCoreNanoSeconds().GetValue()) - float64(before.GetUsageCoreNanoSeconds().GetValue())
	return fmt.Sprintf("%.2f", 100*used/float64(elapsed))
}

func podStatsCommand(s *session) *cobra.Command {
	filter := &runtimeapi.PodSandboxStatsFilter{}
	format := asTable
	cmd := &cobra.Command{
		Use: "statsp [POD]", Short: "Print what pods use", Args: cobra.MaximumNArgs(1),
		RunE: s.run(func(ctx context.Context, r *remote.Runtime, out io.Writer, args []string) error {
			if len(args) > 0 {
				filter.Id = args[0]
			}
			list, err := r.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{Filter: filter})
			if err != nil || format != asTable {
				return firstOf(err, func() error { return printMessage(out, list, format) })
			}
			var rows [][]string
			for _, p := range list.GetStats() {
				linux := p.GetLinux()
				rows = append(rows, []string{p.GetAttributes().GetMetadata().GetName(), short(p.GetAttributes().GetId()),
					time.Duration(linux.GetCpu().GetUsageCoreNanoSeconds().GetValue()).Round(time.Millisecond).String(),
					size(linux.GetMemory().GetWorkingSetBytes().GetValue()), fmt.Sprint(linux.GetProcess().GetProcessCount().GetValue())})
			}
			slices.SortFunc(rows, slices.Compare[[]string])
			return table(out, []string{"POD", "POD ID", "CPU TIME", "MEM", "PROCESSES"}, rows)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&filter.Id, "id", "", "only the pod with this `ID`")
	f.StringToStringVar(&filter.LabelSelector, "label", nil, "only those with these labels, `KEY=VALUE`")
	f.VarP(&format, "output", "o", "table, json or yaml")
	return cmd
}
