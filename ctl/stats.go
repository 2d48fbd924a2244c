package ctl

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/remote"
)

// sampling is how the use of the processor is told, and how often.
type sampling struct {
	seconds int
	watch   bool
	format  outputFlag
}

func (s *sampling) add(cmd *cobra.Command) {
	s.format = asTable
	f := cmd.Flags()
	f.IntVarP(&s.seconds, "seconds", "s", 1, "`SECONDS` between the two samples that tell the use of the processor")
	f.BoolVarP(&s.watch, "watch", "w", false, "go on until interrupted")
	f.VarP(&s.format, "output", "o", "table, json or yaml")
}

// repeat calls show once, or with watch until ctx ends, over and over, the
// output of each time in the place of that before if it goes to a terminal.
func repeat(ctx context.Context, out io.Writer, watch bool, pause time.Duration, show func() error) error {
	f, ok := out.(*os.File)
	clear := watch && ok && term.IsTerminal(int(f.Fd()))
	for {
		if clear {
			fmt.Fprint(out, "\x1b[H\x1b[2J")
		}
		err := show()
		if watch && ctx.Err() != nil {
			return nil // told to stop
		}
		if err != nil || !watch {
			return err
		}
		if err := wait(ctx, pause); err != nil {
			return nil
		}
	}
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

// show lists once, for the machine-readable formats, or twice for a table.
func show[T any](ctx context.Context, out io.Writer, s *sampling, list func() (T, error), print func(before, after T) error, encode func(T) error) error {
	pause := time.Duration(0)
	if s.format != asTable {
		pause = time.Duration(s.seconds) * time.Second
	}
	return repeat(ctx, out, s.watch, pause, func() error {
		before, err := list()
		if err != nil {
			return err
		}
		if s.format != asTable {
			return encode(before)
		}
		if err := wait(ctx, time.Duration(s.seconds)*time.Second); err != nil {
			return err
		}
		after, err := list()
		if err != nil {
			return err
		}
		return print(before, after)
	})
}

func statsCommand(s *session) *cobra.Command {
	filter := &runtimeapi.ContainerStatsFilter{}
	var all bool
	var samples sampling
	cmd := &cobra.Command{
		Use: "stats [CONTAINER]", Short: "Print what running containers use", Args: cobra.MaximumNArgs(1),
		RunE: s.runUnlimited(func(ctx context.Context, r *remote.Runtime, out io.Writer, args []string) error {
			if len(args) > 0 {
				filter.Id = cmp.Or(filter.Id, args[0])
			}
			list := func() (*runtimeapi.ListContainerStatsResponse, error) {
				l, err := limited(ctx, s, r.ListContainerStats, &runtimeapi.ListContainerStatsRequest{Filter: filter})
				slices.SortFunc(l.GetStats(), func(a, b *runtimeapi.ContainerStats) int {
					return cmp.Compare(a.GetAttributes().GetId(), b.GetAttributes().GetId())
				})
				return l, err
			}
			return show(ctx, out, &samples, list,
				func(before, after *runtimeapi.ListContainerStatsResponse) error {
					return printStats(out, before.GetStats(), after.GetStats(), all)
				},
				func(l *runtimeapi.ListContainerStatsResponse) error { return printMessage(out, l, samples.format) })
		}),
	}
	samples.add(cmd)
	f := cmd.Flags()
	f.BoolVarP(&all, "all", "a", false, "also those that do not run, if the runtime lists them")
	f.StringVar(&filter.Id, "id", "", "only the container with this `ID`")
	f.StringVarP(&filter.PodSandboxId, "pod", "p", "", "only those of the pod with this `ID`")
	f.StringToStringVar(&filter.LabelSelector, "label", nil, "only those with these labels, `KEY=VALUE`")
	return cmd
}

func printStats(out io.Writer, before, after []*runtimeapi.ContainerStats, all bool) error {
	first := map[string]*runtimeapi.CpuUsage{}
	for _, c := range before {
		first[c.GetAttributes().GetId()] = c.GetCpu()
	}
	var rows [][]string
	for _, c := range after {
		id := c.GetAttributes().GetId()
		cpu, memory := c.GetCpu(), c.GetMemory().GetWorkingSetBytes().GetValue()
		if !all && cpu.GetUsageCoreNanoSeconds().GetValue() == 0 && memory == 0 {
			continue // it does not run
		}
		rows = append(rows, []string{short(id), c.GetAttributes().GetMetadata().GetName(), percent(first[id], cpu),
			size(memory), size(c.GetWritableLayer().GetUsedBytes().GetValue()),
			fmt.Sprint(c.GetWritableLayer().GetInodesUsed().GetValue()), size(c.GetSwap().GetSwapUsageBytes().GetValue())})
	}
	return table(out, []string{"CONTAINER", "NAME", "CPU %", "MEM", "DISK", "INODES", "SWAP"}, rows)
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
	var samples sampling
	cmd := &cobra.Command{
		Use: "statsp [POD]", Short: "Print what pods use", Args: cobra.MaximumNArgs(1),
		RunE: s.runUnlimited(func(ctx context.Context, r *remote.Runtime, out io.Writer, args []string) error {
			if len(args) > 0 {
				filter.Id = cmp.Or(filter.Id, args[0])
			}
			list := func() (*runtimeapi.ListPodSandboxStatsResponse, error) {
				l, err := limited(ctx, s, r.ListPodSandboxStats, &runtimeapi.ListPodSandboxStatsRequest{Filter: filter})
				slices.SortFunc(l.GetStats(), func(a, b *runtimeapi.PodSandboxStats) int {
					return cmp.Compare(a.GetAttributes().GetId(), b.GetAttributes().GetId())
				})
				return l, err
			}
			return show(ctx, out, &samples, list,
				func(before, after *runtimeapi.ListPodSandboxStatsResponse) error {
					return printPodStats(out, before.GetStats(), after.GetStats())
				},
				func(l *runtimeapi.ListPodSandboxStatsResponse) error { return printMessage(out, l, samples.format) })
		}),
	}
	samples.add(cmd)
	f := cmd.Flags()
	f.StringVar(&filter.Id, "id", "", "only the pod with this `ID`")
	f.StringToStringVar(&filter.LabelSelector, "label", nil, "only those with these labels, `KEY=VALUE`")
	return cmd
}

func printPodStats(out io.Writer, before, after []*runtimeapi.PodSandboxStats) error {
	first := map[string]*runtimeapi.CpuUsage{}
	for _, p := range before {
		first[p.GetAttributes().GetId()] = p.GetLinux().GetCpu()
	}
	var rows [][]string
	for _, p := range after {
		id, linux := p.GetAttributes().GetId(), p.GetLinux()
		rows = append(rows, []string{p.GetAttributes().GetMetadata().GetName(), short(id), percent(first[id], linux.GetCpu()),
			size(linux.GetMemory().GetWorkingSetBytes().GetValue())})
	}
	return table(out, []string{"POD", "POD ID", "CPU %", "MEM"}, rows)
}

// machineFormat is the choice of "-o" where there is no table.
type machineFormat struct{ outputFlag }

// Set implements the flag.
func (m *machineFormat) Set(s string) error {
	if err := m.outputFlag.Set(s); err != nil || m.outputFlag == asTable {
		return fmt.Errorf("%q is neither json nor yaml", s)
	}
	return nil
}

func podMetricsCommand(s *session) *cobra.Command {
	format := machineFormat{asJSON}
	var watch bool
	cmd := &cobra.Command{
		Use: "metricsp", Short: "Print the metrics of pods and their containers", Args: cobra.NoArgs,
		RunE: s.runUnlimited(func(ctx context.Context, r *remote.Runtime, out io.Writer, _ []string) error {
			return repeat(ctx, out, watch, time.Second, func() error {
				l, err := limited(ctx, s, r.ListPodSandboxMetrics, &runtimeapi.ListPodSandboxMetricsRequest{})
				if err != nil {
					return err
				}
				return printMessage(out, l, format.outputFlag)
			})
		}),
	}
	f := cmd.Flags()
	f.VarP(&format, "output", "o", "json or yaml")
	f.BoolVarP(&watch, "watch", "w", false, "go on until interrupted")
	return cmd
}

func metricDescriptorsCommand(s *session) *cobra.Command {
	format := machineFormat{asJSON}
	cmd := &cobra.Command{
		Use: "metricdescs", Short: "Print which metrics there are", Args: cobra.NoArgs,
		RunE: s.run(func(ctx context.Context, r *remote.Runtime, out io.Writer, _ []string) error {
			l, err := r.ListMetricDescriptors(ctx, &runtimeapi.ListMetricDescriptorsRequest{})
			if err != nil {
				return err
			}
			return printMessage(out, l, format.outputFlag)
		}),
	}
	cmd.Flags().VarP(&format, "output", "o", "json or yaml")
	return cmd
}

// limited makes one call of a command that itself may go on for ever.
func limited[Q, A any](ctx context.Context, s *session, call func(context.Context, Q) (A, error), request Q) (A, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	return call(ctx, request)
}
