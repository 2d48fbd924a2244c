package cgroup

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Unlimited is the value of a limit that is none, where 0 would be a limit.
const Unlimited = math.MaxUint64

// Stats is what a group has used. What the host has no controller for is 0;
// HasMemory, HasSwap and HasPids tell which 0 means that nothing is known.
type Stats struct {
	Time             time.Time
	CPUNanoseconds   uint64 // since creation
	HasMemory        bool
	MemoryBytes      uint64 // usage
	WorkingSetBytes  uint64 // usage less inactive file pages, as cAdvisor has it
	RSSBytes         uint64
	PageFaults       uint64
	MajorPageFaults  uint64
	MemoryLimitBytes uint64 // 0: none
	HasSwap          bool   // the kernel accounts swap
	SwapBytes        uint64
	SwapLimitBytes   uint64 // Unlimited: none; 0: no swap, or the kernel does not account it
	HasPids          bool
	Pids             uint64 // processes and threads
}

// Stats reads the group's files.
func (g *Group) Stats() (Stats, error) {
	if g.bad != nil {
		return Stats{}, g.bad
	}
	r := statsReader{g: g}
	s := r.stats()
	if r.err != nil {
		return Stats{}, fmt.Errorf("statistics of cgroup %s: %w", g.path, r.err)
	}
	return s, nil
}

func (r *statsReader) stats() Stats {
	g := r.g
	s := Stats{Time: time.Now(), CPUNanoseconds: r.cpu()}
	switch g.h.version("memory") {
	case 1:
		r.memoryV1(&s)
	case 2:
		r.memoryV2(&s)
	}
	s.WorkingSetBytes = sub(s.MemoryBytes, s.WorkingSetBytes)
	s.HasMemory = g.h.version("memory") > 0
	if s.HasPids = g.h.version("pids") > 0; s.HasPids {
		s.Pids = r.uint("pids", "pids.current")
	}
	return s
}

func (r *statsReader) cpu() uint64 {
	if r.g.h.version("cpuacct") == 1 {
		return r.uint("cpuacct", "cpuacct.usage")
	}
	if r.g.h.unified == "" {
		return 0
	}
	r.cpuStat = r.keyed(r.g.h.unified+r.g.path, "cpu.stat")
	return microsecond * r.cpuStat["usage_usec"]
}

// statsReader keeps the first error of a sequence of reads, and the files that
// hold more than was asked for.
type statsReader struct {
	g                   *Group
	err                 error
	cpuStat, memoryStat map[string]uint64
}

func (r *statsReader) uint(controller, file string) uint64 {
	if r.err != nil {
		return 0
	}
	n, err := readUint(r.g.dir(controller) + "/" + file)
	r.err = err
	return n
}

// optional reads a file that the kernel may not have been built with.
func (r *statsReader) optional(controller, file string) uint64 {
	if r.err != nil || !exists(r.g.dir(controller)+"/"+file) {
		return 0
	}
	return r.uint(controller, file)
}

func (r *statsReader) keyed(dir, file string) map[string]uint64 {
	if r.err != nil {
		return nil
	}
	m, err := readKeyed(dir + "/" + file)
	r.err = err
	return m
}

// memoryV1 leaves the inactive file pages in WorkingSetBytes.
func (r *statsReader) memoryV1(s *Stats) {
	s.MemoryBytes = r.uint("memory", "memory.usage_in_bytes")
	stat := r.keyed(r.g.dir("memory"), "memory.stat")
	r.memoryStat = stat
	s.WorkingSetBytes = stat["total_inactive_file"]
	s.RSSBytes = stat["total_rss"]
	s.PageFaults = stat["total_pgfault"]
	s.MajorPageFaults = stat["total_pgmajfault"]
	limit := r.uint("memory", "memory.limit_in_bytes")
	if limit < v1Unlimited {
		s.MemoryLimitBytes = limit
	}
	s.SwapBytes = stat["total_swap"]
	both := r.optional("memory", "memory.memsw.limit_in_bytes")
	s.HasSwap = both > 0
	if both >= v1Unlimited {
		s.SwapLimitBytes = Unlimited
	} else if both > 0 {
		s.SwapLimitBytes = sub(both, limit)
	}
}

// v1Unlimited is below what v1 shows for no limit, which depends on the page
// size, and above what any machine has.
const v1Unlimited = 1 << 62

// memoryV2 leaves the inactive file pages in WorkingSetBytes.
func (r *statsReader) memoryV2(s *Stats) {
	s.MemoryBytes = r.uint("memory", "memory.current")
	stat := r.keyed(r.g.dir("memory"), "memory.stat")
	r.memoryStat = stat
	s.WorkingSetBytes = stat["inactive_file"]
	s.RSSBytes = stat["anon"]
	s.PageFaults = stat["pgfault"]
	s.MajorPageFaults = stat["pgmajfault"]
	if limit := r.uint("memory", "memory.max"); limit != Unlimited {
		s.MemoryLimitBytes = limit
	}
	if s.HasSwap = exists(r.g.dir("memory") + "/memory.swap.current"); s.HasSwap {
		s.SwapBytes = r.uint("memory", "memory.swap.current")
		s.SwapLimitBytes = r.uint("memory", "memory.swap.max")
	}
}

func sub(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

// OOMKills is how often the kernel killed a process of the group or its
// descendants for a memory limit since the group was made.
func (g *Group) OOMKills() (uint64, error) {
	if g.bad != nil {
		return 0, g.bad
	}
	var n uint64
	var err error
	switch g.h.version("memory") {
	case 1:
		n, err = oomKillsV1(g.dir("memory"))
	case 2:
		var m map[string]uint64
		m, err = readKeyed(g.dir("memory") + "/memory.events")
		n = m["oom_kill"]
	default:
		err = errors.New("the host has no memory controller")
	}
	if err != nil {
		return 0, fmt.Errorf("OOM kills of cgroup %s: %w", g.path, err)
	}
	return n, nil
}

// oomKillsV1 adds up a tree: v1 counts each group's own processes only.
func oomKillsV1(dir string) (uint64, error) {
	m, err := readKeyed(dir + "/memory.oom_control")
	if err != nil {
		return 0, err
	}
	n := m["oom_kill"]
	children, err := childDirs(dir)
	if err != nil {
		return 0, err
	}
	for _, c := range children {
		more, err := oomKillsV1(c)
		if err != nil && !gone(err) {
			return 0, err
		}
		n += more
	}
	return n, nil
}

// Pressure is one resource's pressure stall information: how much of the time
// some, or all, of the group's tasks waited for it.
type Pressure struct {
	Some, Full PressureShare
}

// PressureShare is a share of time in percent, averaged over 10, 60 and 300
// seconds, and the sum since the group was made.
type PressureShare struct {
	Avg10, Avg60, Avg300 float64
	Total                time.Duration
}

// Pressure reads the pressure of "cpu", "memory" or "io". It is nil where the
// host has no cgroup2 tree or the kernel does not measure it.
func (g *Group) Pressure(resource string) (*Pressure, error) {
	if g.bad != nil {
		return nil, g.bad
	}
	file := g.h.unified + g.path + "/" + resource + ".pressure"
	if g.h.unified == "" || !exists(file) {
		return nil, nil
	}
	s, err := readFile(file)
	if errors.Is(err, unix.EOPNOTSUPP) { // built in, but switched off
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pressure of cgroup %s: %w", g.path, err)
	}
	return parsePressure(s), nil
}

func parsePressure(s string) *Pressure {
	p := &Pressure{}
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		var share PressureShare
		for _, kv := range f[1:] {
			key, value, _ := strings.Cut(kv, "=")
			x, err := strconv.ParseFloat(value, 64)
			if err != nil {
				continue
			}
			switch key {
			case "avg10":
				share.Avg10 = x
			case "avg60":
				share.Avg60 = x
			case "avg300":
				share.Avg300 = x
			case "total":
				share.Total = time.Duration(x) * time.Microsecond
			}
		}
		switch f[0] {
		case "some":
			p.Some = share
		case "full":
			p.Full = share
		}
	}
	return p
}
