package stats

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"podstead/cgroup"
)

// tick is the kernel's unit of /proc/stat (USER_HZ).
const tick = time.Second / 100

// sample is what the node's processors had done at a time.
type sample struct {
	at   time.Time
	used uint64 // nanoseconds
	rate uint64 // nanoseconds in a second, before
}

// node tells of the whole machine.
func (s *Source) node() stats.NodeStats {
	now := metav1.Now()
	out := stats.NodeStats{NodeName: s.Node}
	for name, line := range fields("/proc/stat") {
		switch name {
		case "btime":
			if sec, err := strconv.ParseInt(line[0], 10, 64); err == nil {
				out.StartTime = metav1.NewTime(time.Unix(sec, 0))
			}
		case "cpu":
			used := processors(line)
			rate := s.rate(now.Time, used)
			out.CPU = &stats.CPUStats{Time: now, UsageCoreNanoSeconds: &used, UsageNanoCores: rate}
		}
	}
	m := map[string]uint64{}
	for name, line := range fields("/proc/meminfo") {
		kib, _ := strconv.ParseUint(line[0], 10, 64)
		m[strings.TrimSuffix(name, ":")] = kib << 10
	}
	used := m["MemTotal"] - m["MemFree"]
	workingSet := used - min(used, m["Inactive(file)"])
	available, rss := m["MemTotal"]-workingSet, m["AnonPages"]
	out.Memory = &stats.MemoryStats{Time: now, UsageBytes: &used, WorkingSetBytes: &workingSet, AvailableBytes: &available, RSSBytes: &rss}
	for name, line := range fields("/proc/vmstat") {
		n, err := strconv.ParseUint(line[0], 10, 64)
		switch {
		case err != nil:
		case name == "pgfault":
			out.Memory.PageFaults = &n
		case name == "pgmajfault":
			out.Memory.MajorPageFaults = &n
		}
	}
	swapFree, swapUsed := m["SwapFree"], m["SwapTotal"]-m["SwapFree"]
	out.Swap = &stats.SwapStats{Time: now, SwapAvailableBytes: &swapFree, SwapUsageBytes: &swapUsed}
	out.SystemContainers = s.system(now)
	return out
}

// system tells of the agent itself, of the machine's other programs and of all pods
// together, under the names that dashboards know.
func (s *Source) system(now metav1.Time) []stats.ContainerStats {
	out := []stats.ContainerStats{s.own(now)}
	for _, g := range []struct {
		name  string
		group *cgroup.Group
	}{{stats.SystemContainerMisc, s.SystemCgroup}, {stats.SystemContainerPods, s.PodsCgroup}} {
		if one, ok := ofGroup(g.name, g.group, now); ok {
			out = append(out, one)
		}
	}
	return out
}

// own tells of the agent, by its group if it has one.
func (s *Source) own(now metav1.Time) stats.ContainerStats {
	if one, ok := ofGroup(stats.SystemContainerKubelet, s.OwnCgroup, now); ok {
		return one
	}
	one := stats.ContainerStats{Name: stats.SystemContainerKubelet, StartTime: now}
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &ru) == nil {
		used := uint64(ru.Utime.Nano() + ru.Stime.Nano())
		one.CPU = &stats.CPUStats{Time: now, UsageCoreNanoSeconds: &used}
	}
	if data, err := os.ReadFile("/proc/self/statm"); err == nil {
		if f := strings.Fields(string(data)); len(f) > 1 {
			pages, _ := strconv.ParseUint(f[1], 10, 64)
			rss := pages * uint64(os.Getpagesize())
			one.Memory = &stats.MemoryStats{Time: now, RSSBytes: &rss, WorkingSetBytes: &rss}
		}
	}
	return one
}

// ofGroup tells what a group takes, if there is one.
func ofGroup(name string, group *cgroup.Group, now metav1.Time) (one stats.ContainerStats, ok bool) {
	if group == nil {
		return one, false
	}
	g, err := group.Stats()
	if err != nil {
		return one, false
	}
	one = stats.ContainerStats{Name: name, StartTime: now, CPU: &stats.CPUStats{Time: metav1.NewTime(g.Time), UsageCoreNanoSeconds: &g.CPUNanoseconds}}
	if g.HasMemory {
		one.Memory = &stats.MemoryStats{Time: metav1.NewTime(g.Time), UsageBytes: &g.MemoryBytes, WorkingSetBytes: &g.WorkingSetBytes,
			RSSBytes: &g.RSSBytes, PageFaults: &g.PageFaults, MajorPageFaults: &g.MajorPageFaults}
	}
	return one, true
}

// processors adds up the columns of work: user, nice, system, irq, softirq and
// steal. Those of guests are in the first two.
func processors(columns []string) uint64 {
	sum := uint64(0)
	for i, text := range columns {
		if i == 3 || i == 4 || i > 7 { // idle, iowait, guests
			continue
		}
		n, _ := strconv.ParseUint(text, 10, 64)
		sum += n
	}
	return sum * uint64(tick)
}

// rate is what was used in a second since a moment ago; nil at first.
func (s *Source) rate(now time.Time, used uint64) *uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	const least = time.Second
	switch since := now.Sub(s.last.at); {
	case s.last.at.IsZero():
		s.last = sample{at: now, used: used}
		return nil
	case since >= least:
		s.last = sample{now, used, (used - min(used, s.last.used)) * uint64(time.Second) / uint64(since)}
	case s.last.rate == 0:
		return nil
	}
	rate := s.last.rate
	return &rate
}

// nodeNetwork tells of the node's own links, by default of the one that leads
// out. Links of pods are left out.
func nodeNetwork() *stats.NetworkStats {
	out := &stats.NetworkStats{Time: metav1.Now()}
	outside := defaultLink()
	for name, line := range fields("/proc/net/dev") {
		name = strings.TrimSuffix(name, ":")
		if len(line) < 16 || name == "lo" || isPodLink(name) {
			continue
		}
		n := func(i int) *uint64 { v, _ := strconv.ParseUint(line[i], 10, 64); return &v }
		link := stats.InterfaceStats{Name: name, RxBytes: n(0), RxErrors: n(2), TxBytes: n(8), TxErrors: n(10)}
		out.Interfaces = append(out.Interfaces, link)
		if name == outside {
			out.InterfaceStats = link
		}
	}
	return out
}

// isPodLink: a pair of virtual Ethernet has its other end in another namespace,
// and, unlike a VLAN, no link below it.
func isPodLink(name string) bool {
	dir := "/sys/class/net/" + name
	link, err := os.ReadFile(dir + "/iflink")
	if err != nil {
		return false
	}
	index, _ := os.ReadFile(dir + "/ifindex")
	below, _ := filepath.Glob(dir + "/lower_*")
	return string(link) != string(index) && len(below) == 0
}

func defaultLink() string {
	for name, line := range fields("/proc/net/route") {
		if len(line) > 6 && line[0] == "00000000" && line[6] == "00000000" {
			return name
		}
	}
	return ""
}

// nodeProcesses tells how many there are and may be.
func nodeProcesses() *stats.RlimitStats {
	out := &stats.RlimitStats{Time: metav1.Now()}
	if data, err := os.ReadFile("/proc/sys/kernel/pid_max"); err == nil {
		if n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64); err == nil {
			out.MaxPID = &n
		}
	}
	if data, err := os.ReadFile("/proc/loadavg"); err == nil {
		if f := strings.Fields(string(data)); len(f) > 3 {
			_, all, _ := strings.Cut(f[3], "/")
			if n, err := strconv.ParseInt(all, 10, 64); err == nil {
				out.NumOfRunningProcesses = &n
			}
		}
	}
	return out
}

// fields yields the first word of each line of a file of the kernel, and what
// follows it.
func fields(file string) func(func(string, []string) bool) {
	return func(yield func(string, []string) bool) {
		f, err := os.Open(file)
		if err != nil {
			return
		}
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if words := strings.Fields(lines.Text()); len(words) > 1 && !yield(words[0], words[1:]) {
				return
			}
		}
	}
}
