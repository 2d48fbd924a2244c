package cgroup

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Usage is Stats and what takes more files to know: what a monitoring system
// asks for at its own pace. A pointer is nil where the host does not tell.
type Usage struct {
	Stats
	// CPU time in nanoseconds.
	CPUUser, CPUSystem *uint64
	Throttling         *Throttling

	// Bytes of memory, all with that of the groups below.
	Cache, MappedFile, Kernel, ActiveFile, InactiveFile, FileDirty, FileWriteback *uint64
	MemoryMax                                                                     *uint64 // the most there ever was
	// Cumulative counts.
	MemoryLimitHits, MemoryHighHits         *uint64
	PagesScanned, PagesReclaimed            *uint64
	RefaultsFile, RefaultsAnonymous         *uint64
	OwnPageFaults, OwnMajorPageFaults       *uint64 // without the groups below, where the kernel tells
	OOMKills                                *uint64
	IO                                      []DeviceIO // sorted by device
	HasIO                                   bool
	Hugepages                               []Hugepages // sorted by size
	PidsLimit                               uint64      // 0: none
	CPUPressure, MemoryPressure, IOPressure *Pressure
}

// Throttling is how a group fared with its CPU quota. Times are in nanoseconds.
type Throttling struct {
	Periods, ThrottledPeriods, ThrottledTime uint64
	Bursts, BurstTime                        uint64
}

// DeviceIO is what a group read from and wrote to a block device.
type DeviceIO struct {
	Major, Minor                         uint32
	ReadBytes, WriteBytes, Reads, Writes uint64
	Cost                                 *IOCost
}

// IOCost is how a group fared with the cost model of a device (io.cost.qos of
// cgroup2), in nanoseconds of the device's time or of waiting for it.
type IOCost struct {
	Usage, Wait, Indebt, Indelay uint64
}

// Usage reads the group's files.
func (g *Group) Usage() (Usage, error) {
	if g.bad != nil {
		return Usage{}, g.bad
	}
	r := statsReader{g: g}
	u := Usage{Stats: r.stats()}
	r.cpuDetail(&u)
	switch g.h.version("memory") {
	case 1:
		r.memoryDetailV1(&u)
	case 2:
		r.memoryDetailV2(&u)
	}
	r.io(&u)
	r.hugepages(&u)
	if g.h.version("pids") > 0 && r.err == nil {
		if limit := r.uint("pids", "pids.max"); limit != Unlimited {
			u.PidsLimit = limit
		}
	}
	if r.err != nil {
		return Usage{}, fmt.Errorf("statistics of cgroup %s: %w", g.path, r.err)
	}
	if kills, err := g.OOMKills(); err == nil {
		u.OOMKills = &kills
	}
	for resource, p := range map[string]**Pressure{"cpu": &u.CPUPressure, "memory": &u.MemoryPressure, "io": &u.IOPressure} {
		if *p, r.err = g.Pressure(resource); r.err != nil {
			return Usage{}, r.err
		}
	}
	return u, nil
}

// CPUNanoseconds is the processor time that the group has used: it grows
// whenever a process of the group runs.
func (g *Group) CPUNanoseconds() (uint64, error) {
	if g.bad != nil {
		return 0, g.bad
	}
	r := statsReader{g: g}
	n := r.cpu()
	if r.err != nil {
		return 0, fmt.Errorf("statistics of cgroup %s: %w", g.path, r.err)
	}
	return n, nil
}

// pick points at a value of a keyed file, nil if the kernel does not show it.
func pick(file map[string]uint64, key string) *uint64 {
	if v, ok := file[key]; ok {
		return &v
	}
	return nil
}

// scaled is pick in another unit.
func scaled(file map[string]uint64, key string, by uint64) *uint64 {
	v := pick(file, key)
	if v != nil {
		*v *= by
	}
	return v
}

const microsecond = 1000

func (r *statsReader) cpuDetail(u *Usage) {
	h := r.g.h
	if h.version("cpuacct") == 1 {
		dir := r.g.dir("cpuacct")
		for file, to := range map[string]**uint64{"cpuacct.usage_user": &u.CPUUser, "cpuacct.usage_sys": &u.CPUSystem} {
			if exists(dir + "/" + file) { // kernel 4.6
				n := r.uint("cpuacct", file)
				*to = &n
			}
		}
	} else {
		u.CPUUser, u.CPUSystem = scaled(r.cpuStat, "user_usec", microsecond), scaled(r.cpuStat, "system_usec", microsecond)
	}
	switch h.version("cpu") {
	case 1:
		s := r.keyed(r.g.dir("cpu"), "cpu.stat")
		u.Throttling = &Throttling{
			Periods: s["nr_periods"], ThrottledPeriods: s["nr_throttled"], ThrottledTime: s["throttled_time"],
			Bursts: s["nr_bursts"], BurstTime: s["burst_time"],
		}
	case 2:
		s := r.cpuStat
		if _, enabled := s["nr_periods"]; enabled {
			u.Throttling = &Throttling{
				Periods: s["nr_periods"], ThrottledPeriods: s["nr_throttled"], ThrottledTime: microsecond * s["throttled_usec"],
				Bursts: s["nr_bursts"], BurstTime: microsecond * s["burst_usec"],
			}
		}
	}
}

func (r *statsReader) memoryDetailV1(u *Usage) {
	s := r.memoryStat
	u.Cache, u.MappedFile = pick(s, "total_cache"), pick(s, "total_mapped_file")
	u.ActiveFile, u.InactiveFile = pick(s, "total_active_file"), pick(s, "total_inactive_file")
	u.FileDirty, u.FileWriteback = pick(s, "total_dirty"), pick(s, "total_writeback")
	u.RefaultsFile, u.RefaultsAnonymous = pick(s, "total_workingset_refault_file"), pick(s, "total_workingset_refault_anon")
	u.OwnPageFaults, u.OwnMajorPageFaults = pick(s, "pgfault"), pick(s, "pgmajfault")
	u.Kernel = r.maybe("memory.kmem.usage_in_bytes")
	u.MemoryMax = r.maybe("memory.max_usage_in_bytes")
	u.MemoryLimitHits = r.maybe("memory.failcnt")
}

func (r *statsReader) memoryDetailV2(u *Usage) {
	s := r.memoryStat
	u.Cache, u.MappedFile = pick(s, "file"), pick(s, "file_mapped")
	u.ActiveFile, u.InactiveFile = pick(s, "active_file"), pick(s, "inactive_file")
	u.FileDirty, u.FileWriteback = pick(s, "file_dirty"), pick(s, "file_writeback")
	u.PagesScanned, u.PagesReclaimed = pick(s, "pgscan"), pick(s, "pgsteal")
	u.RefaultsFile, u.RefaultsAnonymous = pick(s, "workingset_refault_file"), pick(s, "workingset_refault_anon")
	u.OwnPageFaults, u.OwnMajorPageFaults = pick(s, "pgfault"), pick(s, "pgmajfault") // v2 adds them up
	u.Kernel = pick(s, "kernel")                                                      // kernel 5.18
	u.MemoryMax = r.maybe("memory.peak")                                              // kernel 5.19
	events := r.keyed(r.g.dir("memory"), "memory.events")
	u.MemoryLimitHits, u.MemoryHighHits = pick(events, "max"), pick(events, "high")
}

// maybe reads a file of the memory controller, nil if the kernel has none.
func (r *statsReader) maybe(file string) *uint64 {
	if r.err != nil || !exists(r.g.dir("memory")+"/"+file) {
		return nil
	}
	n := r.uint("memory", file)
	return &n
}

func (r *statsReader) io(u *Usage) {
	if r.err != nil {
		return
	}
	devices := ioTable{}
	switch {
	case r.g.h.version("blkio") == 1:
		dir := r.g.dir("blkio") + "/blkio.throttle."
		if u.HasIO = exists(dir + "io_serviced_recursive"); !u.HasIO {
			return // before kernel 4.17
		}
		devices.addV1(r.text(dir+"io_service_bytes_recursive"), true)
		devices.addV1(r.text(dir+"io_serviced_recursive"), false)
	case r.g.h.version("io") == 2:
		file := r.g.dir("io") + "/io.stat"
		if u.HasIO = exists(file); !u.HasIO {
			return // the controller is not enabled for the group
		}
		devices.addV2(r.text(file))
	}
	u.IO = devices.sorted()
}

func (r *statsReader) text(path string) string {
	if r.err != nil {
		return ""
	}
	s, err := readFile(path)
	r.err = err
	return s
}

// ioTable is keyed by "MAJOR:MINOR".
type ioTable map[string]*DeviceIO

// device returns the entry of a device, nil for what is none.
func (t ioTable) device(name string) *DeviceIO {
	if d := t[name]; d != nil {
		return d
	}
	major, minor, ok := strings.Cut(name, ":")
	a, err1 := strconv.ParseUint(major, 10, 32)
	b, err2 := strconv.ParseUint(minor, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return nil
	}
	t[name] = &DeviceIO{Major: uint32(a), Minor: uint32(b)}
	return t[name]
}

// addV1 reads lines of the form "254:0 Read 4096".
func (t ioTable) addV1(s string, bytes bool) {
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue // the total
		}
		d := t.device(f[0])
		n, err := strconv.ParseUint(f[2], 10, 64)
		if d == nil || err != nil {
			continue
		}
		switch {
		case f[1] == "Read" && bytes:
			d.ReadBytes = n
		case f[1] == "Read":
			d.Reads = n
		case f[1] == "Write" && bytes:
			d.WriteBytes = n
		case f[1] == "Write":
			d.Writes = n
		}
	}
}

// addV2 reads lines of the form "254:0 rbytes=4096 wbytes=0 rios=1 wios=0 …".
func (t ioTable) addV2(s string) {
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue // a device without figures
		}
		d := t.device(f[0])
		if d == nil {
			continue
		}
		for _, kv := range f[1:] {
			key, value, _ := strings.Cut(kv, "=")
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				continue
			}
			if part, ok := strings.CutPrefix(key, "cost."); ok {
				d.addCost(part, n*microsecond)
				continue
			}
			switch key {
			case "rbytes":
				d.ReadBytes = n
			case "wbytes":
				d.WriteBytes = n
			case "rios":
				d.Reads = n
			case "wios":
				d.Writes = n
			}
		}
	}
}

// addCost takes a figure in nanoseconds. Parts that are no times are left out.
func (d *DeviceIO) addCost(part string, n uint64) {
	var c IOCost
	if d.Cost != nil {
		c = *d.Cost
	}
	switch part {
	case "usage":
		c.Usage = n
	case "wait":
		c.Wait = n
	case "indebt":
		c.Indebt = n
	case "indelay":
		c.Indelay = n
	default:
		return
	}
	d.Cost = &c
}

func (t ioTable) sorted() []DeviceIO {
	var all []DeviceIO
	for _, d := range t {
		all = append(all, *d)
	}
	slices.SortFunc(all, func(a, b DeviceIO) int {
		if a.Major != b.Major {
			return int(a.Major) - int(b.Major)
		}
		return int(a.Minor) - int(b.Minor)
	})
	return all
}

// Threads lists the threads of the group and of those below it, at most limit
// of them; more tells whether there are others.
func (g *Group) Threads(limit int) (tids []int, more bool, err error) {
	if g.bad != nil {
		return nil, false, g.bad
	}
	file := "cgroup.threads"
	if !g.h.Unified() {
		file = "tasks"
	}
	err = threads(g.procsDir(), file, limit, &tids)
	if errors.Is(err, errTooMany) {
		return tids, true, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("threads of cgroup %s: %w", g.path, err)
	}
	return tids, false, nil
}

var errTooMany = errors.New("too many")

func threads(dir, file string, limit int, tids *[]int) error {
	s, err := readFile(dir + "/" + file)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // a threaded subtree's inner group
		return err
	}
	for line := range strings.Lines(s) {
		n, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			continue
		}
		if len(*tids) == limit {
			return errTooMany
		}
		*tids = append(*tids, n)
	}
	children, err := childDirs(dir)
	if err != nil {
		return err
	}
	for _, c := range children {
		if err := threads(c, file, limit, tids); err != nil && !gone(err) {
			return err
		}
	}
	return nil
}
