package engine

import (
	"slices"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cgroup"
)

// The rate of CPU use is that over the last rateWindow or a little more, as far
// as there are samples: one is taken with each request, at most one a second.
const (
	rateWindow  = 10 * time.Second
	sampleEvery = time.Second
	minWindow   = 10 * time.Millisecond // below it a rate is noise
)

// cpuClock remembers what a cgroup had used when somebody asked, to tell rates.
// The zero value is ready.
type cpuClock struct {
	mu      sync.Mutex
	samples []cpuSample // oldest first
}

type cpuSample struct {
	at    time.Time
	nanos uint64
}

// begin says what the group had used, for its preparation, when it began to
// count.
func (k *cpuClock) begin(at time.Time, nanos uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.samples = []cpuSample{{at, nanos}}
}

// usage takes a sample. The first rate is that since the group began at 0; if
// that time is zero, since it is not known, there is no rate yet.
func (k *cpuClock) usage(s cgroup.Stats, since time.Time) *runtimeapi.CpuUsage {
	u := &runtimeapi.CpuUsage{Timestamp: s.Time.UnixNano(), UsageCoreNanoSeconds: value(s.CPUNanoseconds)}
	if rate, ok := k.rate(cpuSample{s.Time, s.CPUNanoseconds}, since); ok {
		u.UsageNanoCores = value(rate)
	}
	return u
}

// rate is in nanoseconds per second.
func (k *cpuClock) rate(now cpuSample, since time.Time) (uint64, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.samples) == 0 && !since.IsZero() {
		k.samples = append(k.samples, cpuSample{at: since})
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

func memoryUsage(s cgroup.Stats) *runtimeapi.MemoryUsage {
	if !s.HasMemory {
		return nil
	}
	m := &runtimeapi.MemoryUsage{
		Timestamp: s.Time.UnixNano(), WorkingSetBytes: value(s.WorkingSetBytes), UsageBytes: value(s.MemoryBytes),
		RssBytes: value(s.RSSBytes), PageFaults: value(s.PageFaults), MajorPageFaults: value(s.MajorPageFaults),
	}
	if s.MemoryLimitBytes > 0 {
		m.AvailableBytes = value(s.MemoryLimitBytes - min(s.WorkingSetBytes, s.MemoryLimitBytes))
	}
	return m
}

func swapUsage(s cgroup.Stats) *runtimeapi.SwapUsage {
	if !s.HasSwap {
		return nil
	}
	u := &runtimeapi.SwapUsage{Timestamp: s.Time.UnixNano(), SwapUsageBytes: value(s.SwapBytes)}
	if s.SwapLimitBytes != cgroup.Unlimited {
		u.SwapAvailableBytes = value(s.SwapLimitBytes - min(s.SwapBytes, s.SwapLimitBytes))
	}
	return u
}

// addPressures adds what the kernel measures of stalls, where it does: in a
// cgroup2 tree. It returns those of I/O.
func addPressures(g *cgroup.Group, cpu *runtimeapi.CpuUsage, memory *runtimeapi.MemoryUsage) (*runtimeapi.IoUsage, error) {
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
