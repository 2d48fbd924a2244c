package oci

import (
	"bufio"
	"os"
	"strconv"
	"strings"

	"podstead/cgroup"
)

// The types of this file are runc's form of statistics. What the kernel does not
// tell is left out.

type (
	usage struct {
		Limit uint64 `json:"limit"`
		Usage uint64 `json:"usage,omitempty"`
		Max   uint64 `json:"max,omitempty"`
		Hits  uint64 `json:"failcnt"`
	}
	pressureShare struct {
		Avg10  float64 `json:"avg10"`
		Avg60  float64 `json:"avg60"`
		Avg300 float64 `json:"avg300"`
		Total  uint64  `json:"total"` // µs
	}
	pressure struct {
		Some pressureShare `json:"some"`
		Full pressureShare `json:"full"`
	}
	cpuStats struct {
		Usage struct {
			Total  uint64 `json:"total,omitempty"`
			Kernel uint64 `json:"kernel"`
			User   uint64 `json:"user"`
		} `json:"usage"`
		Throttling struct {
			Periods          uint64 `json:"periods,omitempty"`
			ThrottledPeriods uint64 `json:"throttledPeriods,omitempty"`
			ThrottledTime    uint64 `json:"throttledTime,omitempty"`
		} `json:"throttling"`
		Pressure *pressure `json:"psi,omitempty"`
	}
	memoryStats struct {
		Cache    uint64            `json:"cache,omitempty"`
		Usage    usage             `json:"usage"`
		Swap     usage             `json:"swap"`
		Kernel   usage             `json:"kernel"`
		Raw      map[string]uint64 `json:"raw,omitempty"`
		Pressure *pressure         `json:"psi,omitempty"`
	}
	pidsStats struct {
		Current uint64 `json:"current,omitempty"`
		Limit   uint64 `json:"limit,omitempty"`
	}
	ioEntry struct {
		Major uint64 `json:"major,omitempty"`
		Minor uint64 `json:"minor,omitempty"`
		Op    string `json:"op,omitempty"`
		Value uint64 `json:"value,omitempty"`
	}
	ioStats struct {
		Bytes    []ioEntry `json:"ioServiceBytesRecursive,omitempty"`
		Count    []ioEntry `json:"ioServicedRecursive,omitempty"`
		Pressure *pressure `json:"psi,omitempty"`
	}
	hugetlbStats struct {
		Usage uint64 `json:"usage,omitempty"`
		Max   uint64 `json:"max,omitempty"`
		Hits  uint64 `json:"failcnt"`
	}
	rdtStats struct {
		L3CacheSchema string `json:"l3_cache_schema,omitempty"`
		MemBwSchema   string `json:"mem_bw_schema,omitempty"`
	}
	interfaceStats struct {
		Name                                    string
		RxBytes, RxPackets, RxErrors, RxDropped uint64
		TxBytes, TxPackets, TxErrors, TxDropped uint64
	}
	statsData struct {
		CPU        cpuStats                `json:"cpu"`
		Memory     memoryStats             `json:"memory"`
		Pids       pidsStats               `json:"pids"`
		IO         ioStats                 `json:"blkio"`
		Hugetlb    map[string]hugetlbStats `json:"hugetlb"`
		RDT        rdtStats                `json:"intel_rdt"`
		Interfaces []interfaceStats        `json:"network_interfaces"`
	}
)

// stats reads what the container has used.
func (c *container) stats() (d statsData, err error) {
	u, err := c.group().Usage()
	if err != nil {
		return d, err
	}
	d.CPU, d.Memory, d.IO = cpuOf(u), memoryOf(u), ioOf(u)
	d.Pids = pidsStats{Current: u.Pids, Limit: u.PidsLimit}
	d.Hugetlb = map[string]hugetlbStats{}
	for _, h := range u.Hugepages {
		d.Hugetlb[h.Size] = hugetlbStats{Usage: h.Bytes, Max: value(h.MaxBytes), Hits: h.Hits}
	}
	if c.RDT != nil {
		lines := c.RDT.Schemata()
		d.RDT = rdtStats{L3CacheSchema: lines["L3"], MemBwSchema: lines["MB"]}
	}
	if c.OwnNetwork {
		d.Interfaces = interfaces(c.Pid)
	}
	return d, nil
}

// value is what a pointer points to, 0 for nothing.
func value(n *uint64) uint64 {
	if n == nil {
		return 0
	}
	return *n
}

func cpuOf(u cgroup.Usage) (s cpuStats) {
	s.Usage.Total, s.Usage.Kernel, s.Usage.User = u.CPUNanoseconds, value(u.CPUSystem), value(u.CPUUser)
	if t := u.Throttling; t != nil {
		s.Throttling.Periods, s.Throttling.ThrottledPeriods, s.Throttling.ThrottledTime = t.Periods, t.ThrottledPeriods, t.ThrottledTime
	}
	s.Pressure = pressureOf(u.CPUPressure)
	return s
}

func memoryOf(u cgroup.Usage) memoryStats {
	return memoryStats{
		Cache: value(u.Cache),
		Usage: usage{Limit: u.MemoryLimitBytes, Usage: u.MemoryBytes, Max: value(u.MemoryMax), Hits: value(u.MemoryLimitHits)},
		Swap:  usage{Limit: u.SwapLimitBytes, Usage: u.SwapBytes}, Kernel: usage{Usage: value(u.Kernel)},
		Raw: map[string]uint64{
			"rss": u.RSSBytes, "inactive_file": u.MemoryBytes - u.WorkingSetBytes,
			"pgfault": u.PageFaults, "pgmajfault": u.MajorPageFaults,
		},
		Pressure: pressureOf(u.MemoryPressure),
	}
}

func ioOf(u cgroup.Usage) (s ioStats) {
	for _, d := range u.IO {
		entry := func(op string, n uint64) ioEntry { return ioEntry{uint64(d.Major), uint64(d.Minor), op, n} }
		s.Bytes = append(s.Bytes, entry("Read", d.ReadBytes), entry("Write", d.WriteBytes))
		s.Count = append(s.Count, entry("Read", d.Reads), entry("Write", d.Writes))
	}
	s.Pressure = pressureOf(u.IOPressure)
	return s
}

func pressureOf(p *cgroup.Pressure) *pressure {
	if p == nil {
		return nil
	}
	share := func(s cgroup.PressureShare) pressureShare {
		return pressureShare{s.Avg10, s.Avg60, s.Avg300, uint64(s.Total.Microseconds())}
	}
	return &pressure{share(p.Some), share(p.Full)}
}

// interfaces are the network interfaces of a process, but for the loopback.
func interfaces(pid int) (list []interfaceStats) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/net/dev")
	if err != nil {
		return nil
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, rest, ok := strings.Cut(strings.TrimSpace(lines.Text()), ":")
		columns := strings.Fields(rest)
		if !ok || len(columns) < 16 || name == "lo" {
			continue
		}
		n := make([]uint64, 16)
		for i := range n {
			n[i], _ = strconv.ParseUint(columns[i], 10, 64)
		}
		list = append(list, interfaceStats{name, n[0], n[1], n[2], n[3], n[8], n[9], n[10], n[11]})
	}
	return list
}
