package shim

import (
	"context"
	"fmt"
	"strings"
	"time"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	task "github.com/containerd/containerd/api/runtime/task/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"podstead/cgroup"
)

// Stats asks what a container uses: what its cgroup says, which may be one in a
// virtual machine.
func Stats(ctx context.Context, t Task) (cgroup.Stats, error) {
	var r task.StatsResponse
	if err := t.ask(ctx, "Stats", &task.StatsRequest{ID: t.ID}, &r); err != nil {
		return cgroup.Stats{}, err
	}
	return readStats(r.Stats, time.Now())
}

func readStats(a *anypb.Any, at time.Time) (cgroup.Stats, error) {
	s := cgroup.Stats{Time: at}
	switch {
	case strings.Contains(a.GetTypeUrl(), "cgroups.v1"):
		var m v1.Metrics
		if err := proto.Unmarshal(a.Value, &m); err != nil {
			return s, fmt.Errorf("Stats: %w", err)
		}
		s.CPUNanoseconds = m.GetCPU().GetUsage().GetTotal()
		s.HasPids, s.Pids = m.Pids != nil, m.GetPids().GetCurrent()
		if of := m.Memory; of != nil {
			s.HasMemory, s.MemoryBytes, s.RSSBytes = true, of.GetUsage().GetUsage(), of.TotalRSS
			s.WorkingSetBytes = s.MemoryBytes - min(of.TotalInactiveFile, s.MemoryBytes)
			s.PageFaults, s.MajorPageFaults = of.TotalPgFault, of.TotalPgMajFault
			s.MemoryLimitBytes = limit(of.GetUsage().GetLimit())
		}
	case strings.Contains(a.GetTypeUrl(), "cgroups.v2"):
		var m v2.Metrics
		if err := proto.Unmarshal(a.Value, &m); err != nil {
			return s, fmt.Errorf("Stats: %w", err)
		}
		s.CPUNanoseconds = m.GetCPU().GetUsageUsec() * 1000
		s.HasPids, s.Pids = m.Pids != nil, m.GetPids().GetCurrent()
		if of := m.Memory; of != nil {
			s.HasMemory, s.MemoryBytes, s.RSSBytes = true, of.Usage, of.Anon
			s.WorkingSetBytes = s.MemoryBytes - min(of.InactiveFile, s.MemoryBytes)
			s.PageFaults, s.MajorPageFaults = of.Pgfault, of.Pgmajfault
			s.MemoryLimitBytes = limit(of.UsageLimit)
		}
	default:
		return s, fmt.Errorf("Stats: %q is not known", a.GetTypeUrl())
	}
	return s, nil
}

// limit turns the largest numbers, by which kernels say that there is none, to 0.
func limit(n uint64) uint64 {
	if n >= 1<<62 {
		return 0
	}
	return n
}
