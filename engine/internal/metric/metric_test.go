package metric

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cgroup"
)

var update = flag.Bool("update", false, "write the golden files")

// full is a sample of which everything is known.
func full() *Sample {
	p := &cgroup.Pressure{Some: cgroup.PressureShare{Total: 7 * time.Second}, Full: cgroup.PressureShare{Total: 3 * time.Second}}
	u := &cgroup.Usage{
		Stats: cgroup.Stats{
			CPUNanoseconds: 12_999_999_999, HasMemory: true, MemoryBytes: 1000, WorkingSetBytes: 900, RSSBytes: 800,
			PageFaults: 31, MajorPageFaults: 32, HasSwap: true, SwapBytes: 50, HasPids: true, Pids: 9,
		},
		CPUUser: new(uint64(8_000_000_000)), CPUSystem: new(uint64(4_000_000_000)),
		Throttling: &cgroup.Throttling{Periods: 1, ThrottledPeriods: 2, ThrottledTime: 3_000_000_000, Bursts: 4, BurstTime: 5_000_000_000},
		Cache:      new(uint64(11)), MappedFile: new(uint64(12)), Kernel: new(uint64(13)), ActiveFile: new(uint64(14)),
		InactiveFile: new(uint64(15)), FileDirty: new(uint64(16)), FileWriteback: new(uint64(17)), MemoryMax: new(uint64(18)),
		MemoryLimitHits: new(uint64(19)), MemoryHighHits: new(uint64(20)), PagesScanned: new(uint64(21)), PagesReclaimed: new(uint64(22)),
		RefaultsFile: new(uint64(23)), RefaultsAnonymous: new(uint64(24)), OwnPageFaults: new(uint64(25)), OwnMajorPageFaults: new(uint64(26)),
		IO: []cgroup.DeviceIO{
			{Major: 8, Minor: 1, ReadBytes: 41, WriteBytes: 42, Reads: 43, Writes: 44, Cost: &cgroup.IOCost{Usage: 1e9, Wait: 2e9, Indebt: 3e9, Indelay: 4e9}},
			{Major: 254, ReadBytes: 45, WriteBytes: 46, Reads: 47, Writes: 48},
		},
		Hugepages: []cgroup.Hugepages{{Size: "1GB"}, {Size: "2MB", Bytes: 6 << 20, MaxBytes: new(uint64(8 << 20)), Hits: 5}},
		HasIO:     true, PidsLimit: 100, CPUPressure: p, MemoryPressure: p, IOPressure: p,
	}
	at := time.Unix(1_800_000_000, 0)
	return &Sample{
		Labels: Labels{Pod: "web-0", Namespace: "shop", Container: "web", Cgroup: "/kubepods/pod1/c1", Image: "registry.test/web:1", ID: "c1"},
		Seen:   at, Created: at.Add(-time.Hour), Started: at.Add(-time.Minute), Usage: u, OOMKills: new(uint64(2)),
		Resources: &runtimeapi.LinuxContainerResources{
			CpuPeriod: 50_000, CpuQuota: 25_000, CpuShares: 512, MemoryLimitInBytes: 2000, MemorySwapLimitInBytes: 3000,
			Unified: map[string]string{"memory.min": "500"},
		},
		Disk: &Disk{Device: "/dev/vda1", Bytes: 61, Inodes: 62, InodesFree: 63, Used: new(uint64(64)), UsedAt: at.Add(-time.Second)},
		Processes: &Processes{
			Count: 3, OpenFiles: new(uint64(71)), Sockets: new(uint64(72)), MaxOpenFiles: new(uint64(1024)),
			Threads: &ThreadStates{Running: 1, Sleeping: 6, Stopped: 2, Uninterruptible: 0},
		},
		Interfaces: []Interface{{Name: "eth0", RxBytes: 81, RxPackets: 82, RxErrors: 83, RxDropped: 84, TxBytes: 85, TxPackets: 86, TxErrors: 87, TxDropped: 88}},
		DeviceName: func(major, _ uint32) string {
			if major == 254 {
				return "/dev/vda"
			}
			return ""
		},
	}
}

// print writes metrics as a person would read them.
func printed(s *Set, sample *Sample) string {
	keys := map[string][]string{}
	for _, d := range s.Descriptors() {
		keys[d.Name] = d.LabelKeys
	}
	var b strings.Builder
	for _, m := range s.Of(sample) {
		fmt.Fprintf(&b, "%s %s{", strings.ToLower(m.MetricType.String()), m.Name)
		for i, key := range keys[m.Name] {
			if i > 0 {
				b.WriteString(",")
			}
			fmt.Fprintf(&b, "%s=%q", key, m.LabelValues[i])
		}
		fmt.Fprintf(&b, "} %d", m.Value.Value)
		if m.Timestamp != 0 {
			fmt.Fprintf(&b, " %d", m.Timestamp)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestOf(t *testing.T) {
	const file = "testdata/full.golden"
	got := printed(NewSet(), full())
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(file); err != nil || got != string(want) {
		t.Errorf("metrics are not those of %s (%v):\n%s", file, err, got)
	}
}

// TestEverythingDescribedIsThere also shows that no value of the full sample is
// lost, and that labels fit their keys.
func TestEverythingDescribedIsThere(t *testing.T) {
	s := NewSet()
	seen := map[string]bool{}
	for _, m := range s.Of(full()) {
		seen[m.Name] = true
	}
	names := map[string]bool{}
	for _, d := range s.Descriptors() {
		if names[d.Name] {
			t.Errorf("%s is described twice", d.Name)
		}
		names[d.Name] = true
		if !seen[d.Name] {
			t.Errorf("%s has no value", d.Name)
		}
	}
	for name := range seen {
		if !names[name] {
			t.Errorf("%s is not described", name)
		}
	}
	seen = map[string]bool{}
	keys := map[string]int{}
	for _, d := range s.Descriptors() {
		keys[d.Name] = len(d.LabelKeys)
	}
	for _, m := range s.Of(full()) {
		if identity := fmt.Sprint(m.Name, m.LabelValues); seen[identity] || len(m.LabelValues) != keys[m.Name] {
			t.Errorf("%s is there twice, or has not %d labels", identity, keys[m.Name])
		} else {
			seen[identity] = true
		}
	}
}

// TestWhatIsNotKnownIsLeftOut takes a sample of a host that tells next to nothing.
func TestWhatIsNotKnownIsLeftOut(t *testing.T) {
	sample := &Sample{Labels: full().Labels, Usage: &cgroup.Usage{}, Processes: &Processes{Count: 1}}
	var names []string
	for _, m := range NewSet().Of(sample) {
		names = append(names, m.Name)
	}
	if want := []string{"container_cpu_usage_seconds_total", "container_processes"}; !slices.Equal(names, want) {
		t.Errorf("metrics are %v, want %v", names, want)
	}
	if left := NewSet().Of(&Sample{}); len(left) != 0 {
		t.Errorf("nothing has metrics: %v", left)
	}
}

// TestAllOfCadvisor compares the names with cAdvisor's: whoever leaves one out
// says why.
func TestAllOfCadvisor(t *testing.T) {
	b, err := os.ReadFile("cadvisor.txt")
	if err != nil {
		t.Fatal(err)
	}
	ours := map[string]bool{}
	for _, d := range NewSet().Descriptors() {
		ours[d.Name] = true
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name, why, _ := strings.Cut(strings.TrimSpace(line), ":")
		if missing := strings.TrimSpace(why) != ""; missing == ours[name] {
			t.Errorf("%s: left out %v, described %v", name, missing, ours[name])
		}
		delete(ours, name)
	}
	for name := range ours {
		t.Errorf("%s is no name of cAdvisor's", name)
	}
}
