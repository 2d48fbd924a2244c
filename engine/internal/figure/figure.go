// Package figure turns what cgroups and network namespaces say into the figures
// of the CRI's stats. It keeps nothing but the samples that rates need.
package figure

import (
	"slices"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cgroup"
	"podstead/engine/internal/netdev"
)

// The rate of CPU use is that over the last rateWindow or a little more, as far
// as there are samples: one is taken with each request, at most one a second.
const (
	rateWindow  = 10 * time.Second
	sampleEvery = time.Second
	minWindow   = 10 * time.Millisecond // below it a rate is noise
)

// CPUClock remembers what a cgroup had used when somebody asked, to tell rates.
// The zero value is ready.
type CPUClock struct {
	mu      sync.Mutex
	samples []sample // oldest first
}

type sample struct {
	at    time.Time
	nanos uint64
}

// Begin says what the group had used, for its preparation, when it began to
// count.
func (k *CPUClock) Begin(at time.Time, nanos uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.samples = []sample{{at, nanos}}
}

// Usage takes a sample. The first rate is that since the group began at 0; if
// that time is zero, since it is not known, there is no rate yet.
func (k *CPUClock) Usage(s cgroup.Stats, since time.Time) *runtimeapi.CpuUsage {
	u := &runtimeapi.CpuUsage{Timestamp: s.Time.UnixNano(), UsageCoreNanoSeconds: Value(s.CPUNanoseconds)}
	if rate, ok := k.rate(sample{s.Time, s.CPUNanoseconds}, since); ok {
		u.UsageNanoCores = Value(rate)
	}
	return u
}

// rate is in nanoseconds per second.
func (k *CPUClock) rate(now sample, since time.Time) (uint64, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.samples) == 0 && !since.IsZero() {
		k.samples = append(k.samples, sample{at: since})
	}
	base := 0
	for i, s := range k.samples {
		if now.at.Sub(s.at) >= rateWindow {
			base = i
		}
	}
	k.samples = slices.Delete(k.samples, 0, base)
	if len(k.samples) == 0 {
		k.samples = append(k.samples, now)
		return 0, false
	}
	from, last := k.samples[0], k.samples[len(k.samples)-1]
	if now.at.Sub(last.at) >= sampleEvery {
		k.samples = append(k.samples, now)
	}
	elapsed := now.at.Sub(from.at)
	if elapsed < minWindow || now.nanos < from.nanos {
		return 0, false
	}
	return uint64(float64(now.nanos-from.nanos) / elapsed.Seconds()), true
}

// Memory is nil where the kernel does not account it.
func Memory(s cgroup.Stats) *runtimeapi.MemoryUsage {
	if !s.HasMemory {
		return nil
	}
	m := &runtimeapi.MemoryUsage{
		Timestamp: s.Time.UnixNano(), WorkingSetBytes: Value(s.WorkingSetBytes), UsageBytes: Value(s.MemoryBytes),
		RssBytes: Value(s.RSSBytes), PageFaults: Value(s.PageFaults), MajorPageFaults: Value(s.MajorPageFaults),
	}
	if s.MemoryLimitBytes > 0 {
		m.AvailableBytes = Value(s.MemoryLimitBytes - min(s.WorkingSetBytes, s.MemoryLimitBytes))
	}
	return m
}

// Swap is nil where the kernel does not account it.
func Swap(s cgroup.Stats) *runtimeapi.SwapUsage {
	if !s.HasSwap {
		return nil
	}
	u := &runtimeapi.SwapUsage{Timestamp: s.Time.UnixNano(), SwapUsageBytes: Value(s.SwapBytes)}
	if s.SwapLimitBytes != cgroup.Unlimited {
		u.SwapAvailableBytes = Value(s.SwapLimitBytes - min(s.SwapBytes, s.SwapLimitBytes))
	}
	return u
}

// AddPressures adds what the kernel measures of stalls, where it does: in a
// cgroup2 tree. It returns those of I/O.
func AddPressures(g *cgroup.Group, cpu *runtimeapi.CpuUsage, memory *runtimeapi.MemoryUsage) (*runtimeapi.IoUsage, error) {
	var of [3]*cgroup.Pressure
	for i, resource := range []string{"cpu", "memory", "io"} {
		var err error
		if of[i], err = g.Pressure(resource); err != nil {
			return nil, err
		}
	}
	cpu.Psi = psi(of[0])
	if memory != nil {
		memory.Psi = psi(of[1])
	}
	if of[2] == nil {
		return nil, nil
	}
	return &runtimeapi.IoUsage{Timestamp: cpu.Timestamp, Psi: psi(of[2])}, nil
}

func psi(p *cgroup.Pressure) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	data := func(s cgroup.PressureShare) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: uint64(s.Total), Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &runtimeapi.PsiStats{Some: data(p.Some), Full: data(p.Full)}
}

// Network is the usage of a network namespace.
func Network(n netdev.Usage, at time.Time) *runtimeapi.NetworkUsage {
	u := &runtimeapi.NetworkUsage{Timestamp: at.UnixNano()}
	for _, i := range n.Interfaces {
		usage := &runtimeapi.NetworkInterfaceUsage{
			Name: i.Name, RxBytes: Value(i.RxBytes), RxErrors: Value(i.RxErrors), TxBytes: Value(i.TxBytes), TxErrors: Value(i.TxErrors),
		}
		if i.Name == n.Default {
			u.DefaultInterface = usage
			continue
		}
		u.Interfaces = append(u.Interfaces, usage)
	}
	return u
}

// Value is a figure that is known.
func Value(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }
