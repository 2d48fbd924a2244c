package cgroup

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestWeightFromShares(t *testing.T) {
	for shares, want := range map[uint64]uint64{
		0: 1, 1: 1, 2: 1, 4: 2, 102: 17, 512: 59, 1024: 100, 2048: 174, 10240: 639, 262143: 10000, 262144: 10000, 1 << 40: 10000,
	} {
		if got := WeightFromShares(shares); got != want {
			t.Errorf("%d shares are weight %d, want %d", shares, got, want)
		}
	}
}

func TestIOWeight(t *testing.T) {
	for w, want := range map[uint16]uint64{10: 1, 100: 910, 500: 4950, 1000: 10000} {
		if got := ioWeight(w); got != want {
			t.Errorf("weight %d is %d, want %d", w, got, want)
		}
	}
}

// limitCases are compiled for a v1 and a v2 host; the golden file shows the
// files that are written.
var limitCases = []struct {
	name string
	r    specs.LinuxResources
}{
	{"nothing", specs.LinuxResources{}},
	{"zero leaves alone", specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: ptr[uint64](0), Quota: ptr[int64](0), Period: ptr[uint64](0)},
		Memory: &specs.LinuxMemory{Limit: ptr[int64](0), Swap: ptr[int64](0)},
	}},
	{"a pod's", specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: ptr[uint64](102), Quota: ptr[int64](20000), Period: ptr[uint64](100000)},
		Memory: &specs.LinuxMemory{Limit: ptr[int64](1 << 20), Swap: ptr[int64](1 << 20)},
		Pids:   &specs.LinuxPids{Limit: ptr[int64](10)},
	}},
	{"unlimited", specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Quota: ptr[int64](-1)},
		Memory: &specs.LinuxMemory{Limit: ptr[int64](-1)},
		Pids:   &specs.LinuxPids{Limit: ptr[int64](-1)},
	}},
	{"no processes", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](0)}}},
	{"memory with swap", specs.LinuxResources{Memory: &specs.LinuxMemory{
		Limit: ptr[int64](1000), Swap: ptr[int64](3000), Reservation: ptr[int64](500)}}},
	{"swap unlimited", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](1000), Swap: ptr[int64](-1)}}},
	{"swap alone", specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: ptr[int64](5000)}}},
	{"swap below memory", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](1000), Swap: ptr[int64](900)}}},
	{"negative memory", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](-2)}}},
	{"check before update", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](2000), CheckBeforeUpdate: ptr(true)}}},
	{"check before update, too low", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](1999), CheckBeforeUpdate: ptr(true)}}},
	{"kernel memory", specs.LinuxResources{Memory: &specs.LinuxMemory{Kernel: ptr[int64](1)}}},
	{"kernel TCP memory", specs.LinuxResources{Memory: &specs.LinuxMemory{KernelTCP: ptr[int64](1)}}},
	{"swappiness", specs.LinuxResources{Memory: &specs.LinuxMemory{Swappiness: ptr[uint64](0)}}},
	{"no OOM killer", specs.LinuxResources{Memory: &specs.LinuxMemory{DisableOOMKiller: ptr(true)}}},
	{"period alone", specs.LinuxResources{CPU: &specs.LinuxCPU{Period: ptr[uint64](50000)}}},
	{"burst", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr[int64](50000), Burst: ptr[uint64](10000)}}},
	{"idle", specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr[int64](1), Shares: ptr[uint64](2)}}},
	{"not idle", specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr[int64](0), Shares: ptr[uint64](1024)}}},
	{"realtime", specs.LinuxResources{CPU: &specs.LinuxCPU{RealtimeRuntime: ptr[int64](1000), RealtimePeriod: ptr[uint64](10000)}}},
	{"cpuset", specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0-1", Mems: "0"}}},
	{"block weights", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
		Weight: ptr[uint16](100), WeightDevice: []specs.LinuxWeightDevice{weightDevice(8, 0, 500)}}}},
	{"block weight out of range", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr[uint16](5)}}},
	{"leaf weight", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{LeafWeight: ptr[uint16](100)}}},
	{"throttle", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
		ThrottleReadBpsDevice:   []specs.LinuxThrottleDevice{throttleDevice(8, 0, 1000)},
		ThrottleWriteIOPSDevice: []specs.LinuxThrottleDevice{throttleDevice(8, 16, 0)}}}},
	{"huge pages", specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}}},
	{"huge pages, bad size", specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "../x", Limit: 1}}}},
	{"network class", specs.LinuxResources{Network: &specs.LinuxNetwork{ClassID: ptr[uint32](1)}}},
	{"network priority", specs.LinuxResources{Network: &specs.LinuxNetwork{Priorities: []specs.LinuxInterfacePriority{{Name: "eth0", Priority: 3}}}}},
	{"rdma", specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"mlx5_1": {HcaHandles: ptr[uint32](3)}}}},
	{"unified", specs.LinuxResources{Unified: map[string]string{
		"memory.oom.group": "1", "memory.high": "1000", "io.max": "8:0 rbps=1\n8:16 wbps=2", "cgroup.max.depth": "3"}}},
	{"unified, no such controller", specs.LinuxResources{Unified: map[string]string{"misc.max": "1"}}},
	{"unified, not a limit", specs.LinuxResources{Unified: map[string]string{"cgroup.procs": "1"}}},
	{"unified, a path", specs.LinuxResources{Unified: map[string]string{"memory.max/../../x": "1"}}},
}

// TestHugepagesThatNobodyCounts: the kubelet says 0 of each size of the host, also
// where there is no controller.
func TestHugepagesThatNobodyCounts(t *testing.T) {
	for limit, refused := range map[uint64]bool{0: false, 1 << 21: true} {
		h := parseMountinfo("1 0 0:1 / /c rw - cgroup2 cgroup2 rw\n")
		c := compiler{version: h.version}
		err := c.compile(&specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: limit}}})
		if (err != nil) != refused || len(c.changes) > 0 {
			t.Errorf("%d: %v, changes %v", limit, err, c.changes)
		}
	}
}

func weightDevice(major, minor int64, weight uint16) specs.LinuxWeightDevice {
	d := specs.LinuxWeightDevice{Weight: &weight}
	d.Major, d.Minor = major, minor
	return d
}

func throttleDevice(major, minor int64, rate uint64) specs.LinuxThrottleDevice {
	d := specs.LinuxThrottleDevice{Rate: rate}
	d.Major, d.Minor = major, minor
	return d
}

func TestCompileLimits(t *testing.T) {
	hosts := []struct {
		name    string
		table   string
		v2      []string
		current map[string]string
	}{
		{"v1", "1 0 0:1 / /c/cpu rw - cgroup cgroup rw,cpu,cpuacct\n" +
			"1 0 0:1 / /c/mem rw - cgroup cgroup rw,memory\n1 0 0:1 / /c/pids rw - cgroup cgroup rw,pids\n" +
			"1 0 0:1 / /c/cpuset rw - cgroup cgroup rw,cpuset\n1 0 0:1 / /c/blkio rw - cgroup cgroup rw,blkio\n" +
			"1 0 0:1 / /c/net rw - cgroup cgroup rw,net_cls,net_prio\n1 0 0:1 / /c/huge rw - cgroup cgroup rw,hugetlb\n",
			nil, map[string]string{"memory.usage_in_bytes": "2000"}},
		{"v2", "1 0 0:1 / /c rw - cgroup2 cgroup2 rw\n",
			[]string{"cpu", "cpuset", "memory", "io", "pids", "hugetlb", "rdma"},
			map[string]string{"memory.current": "2000", "memory.max": "4000", "cpu.max": "max 100000"}},
		{"hybrid", "1 0 0:1 / /c/mem rw - cgroup cgroup rw,memory\n1 0 0:1 / /c/u rw - cgroup2 cgroup2 rw\n",
			[]string{"hugetlb"}, map[string]string{"memory.usage_in_bytes": "2000"}},
	}
	var out strings.Builder
	for _, host := range hosts {
		h := parseMountinfo(host.table)
		h.v2 = host.v2
		for _, c := range limitCases {
			fmt.Fprintf(&out, "%s: %s\n", host.name, c.name)
			com := compiler{version: h.version, hybrid: h.unified != "", current: func(_, file string) (string, error) {
				if v, ok := host.current[file]; ok {
					return v, nil
				}
				return "", os.ErrNotExist
			}}
			if err := com.compile(&c.r); err != nil {
				fmt.Fprintf(&out, "    refused: %v\n", strings.ReplaceAll(err.Error(), " of cgroup :", ":"))
				continue
			}
			for _, ch := range com.changes {
				fmt.Fprintf(&out, "    %-28s %-20s %s\n", ch.field, ch.file, ch.value)
			}
		}
	}
	golden(t, "limits.golden", out.String())
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (-update rewrites it); got:\n%s", file, got)
	}
}

func TestParseMountinfo(t *testing.T) {
	h := parseMountinfo(`24 31 0:22 / /proc rw - proc proc rw
29 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro
30 29 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw,nsdelegate
31 29 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
32 29 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 29 0:31 / /odd\040place rw - cgroup cgroup rw,memory
34 29 0:31 / /second rw - cgroup cgroup rw,memory
garbage
35 1
`)
	got := fmt.Sprint(h.unified, h.v1, h.Unified(), h.Controllers(), h.version("memory"), h.version("rdma"))
	want := "/sys/fs/cgroup/unified[{/sys/fs/cgroup/systemd [name=systemd]} {/sys/fs/cgroup/cpu,cpuacct [cpu cpuacct]} {/odd place [memory]}] false [cpu cpuacct memory] 1 0"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	g := h.Group("/x")
	if got := fmt.Sprint(g.JoinFiles(), " ", g.Dir()); got != "[/sys/fs/cgroup/cpu,cpuacct/x/tasks /odd place/x/tasks] /sys/fs/cgroup/unified/x" {
		t.Error(got)
	}
}

func FuzzParseMountinfo(f *testing.F) {
	f.Add("30 29 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
	f.Fuzz(func(t *testing.T, s string) { parseMountinfo(s) })
}

func FuzzParsePressure(f *testing.F) {
	f.Add("some avg10=0.12 avg60=1.00 avg300=0.00 total=12345\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n")
	f.Fuzz(func(t *testing.T, s string) { parsePressure(s); parseKeyed(s) })
}

// read returns a limit as the kernel shows it, under its v1 or v2 name.
func read(t *testing.T, g *Group, controller, v1, v2 string) string {
	t.Helper()
	file := v1
	if g.h.version(controller) == 2 {
		file = v2
	}
	s, err := g.current(controller, file)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func memoryLimits(limit, swap int64) *specs.LinuxResources {
	return &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &swap}}
}

// On v1 memory may never exceed memory with swap, whichever way both go.
func TestMemoryLimitsInAnyDirection(t *testing.T) {
	h := detect(t)
	g := newGroup(t, h)
	if !h.HasSwap() {
		t.Skip("the kernel does not account swap")
	}
	const mb = 1 << 20
	for _, c := range [][2]int64{{10, 10}, {50, 100}, {200, 200}, {20, 20}, {-1, -1}, {30, 60}, {30, 30}} {
		for i := range c {
			if c[i] > 0 {
				c[i] *= mb
			}
		}
		if err := g.Set(memoryLimits(c[0], c[1])); err != nil {
			t.Fatalf("%v: %v", c, err)
		}
		if got := read(t, g, "memory", "memory.limit_in_bytes", "memory.max"); c[0] > 0 && got != fmt.Sprint(c[0]) {
			t.Errorf("%v: limit is %s", c, got)
		}
		want := fmt.Sprint(c[1])
		if h.version("memory") == 2 {
			want = fmt.Sprint(c[1] - c[0])
		}
		if got := read(t, g, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max"); c[1] > 0 && got != want {
			t.Errorf("%v: with swap is %s", c, got)
		}
	}
}

func TestCPULimitsInAnyDirection(t *testing.T) {
	h := detect(t)
	g := newGroup(t, h)
	for _, c := range []struct {
		quota         int64
		period, burst uint64
	}{{50000, 100000, 20000}, {5000, 10000, 0}, {200000, 100000, 100000}, {1000, 100000, 1000}, {-1, 50000, 0}, {30000, 50000, 30000}} {
		err := g.Set(&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &c.quota, Period: &c.period, Burst: &c.burst}})
		if err != nil {
			t.Fatalf("%v: %v", c, err)
		}
		if h.version("cpu") == 1 {
			got := read(t, g, "cpu", "cpu.cfs_quota_us", "") + " " + read(t, g, "cpu", "cpu.cfs_period_us", "")
			if got != fmt.Sprint(c.quota, " ", c.period) {
				t.Errorf("%v: is %s", c, got)
			}
		} else if got := read(t, g, "cpu", "", "cpu.max"); got != fmt.Sprint(limitV2(c.quota), " ", c.period) {
			t.Errorf("%v: is %s", c, got)
		}
	}
}

func TestFailedSetKeepsTheOldLimits(t *testing.T) {
	h := detect(t)
	g := newGroup(t, h)
	old := &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: ptr[uint64](1024)},
		Memory: &specs.LinuxMemory{Limit: ptr[int64](64 << 20)},
	}
	if err := g.Set(old); err != nil {
		t.Fatal(err)
	}
	err := g.Set(&specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: ptr[uint64](2048), Cpus: "4000"},
		Memory: &specs.LinuxMemory{Limit: ptr[int64](32 << 20)},
	})
	var le *LimitError
	if !errors.As(err, &le) || le.Field != "linux.resources.cpu.cpus" || le.Group != g.Path() {
		t.Errorf("error is %v", err)
	}
	if got := read(t, g, "cpu", "cpu.shares", "cpu.weight"); got != "1024" && got != "100" {
		t.Errorf("shares are %s", got)
	}
	if got := read(t, g, "memory", "memory.limit_in_bytes", "memory.max"); got != fmt.Sprint(64<<20) {
		t.Errorf("memory limit is %s", got)
	}
}

func TestLimitWithoutControllerIsNamed(t *testing.T) {
	h := detect(t)
	if h.version("net_cls") != 0 {
		t.Skip("the host has the controller")
	}
	g := newGroup(t, h)
	err := g.Set(&specs.LinuxResources{Network: &specs.LinuxNetwork{ClassID: ptr[uint32](1)}})
	if err == nil || !strings.Contains(err.Error(), "linux.resources.network.classID") || !strings.Contains(err.Error(), "net_cls") {
		t.Errorf("error is %v", err)
	}
}

func TestSetOnMissingGroup(t *testing.T) {
	h := detect(t)
	err := h.Group("/podstead-test-missing").Set(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](5)}})
	if err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("error is %v", err)
	}
}

// Values that v1 hosts do not allow to be changed in the middle of a tree.
func TestCpuset(t *testing.T) {
	h := detect(t)
	g := newGroup(t, h)
	deep := g.Child("b").Child("c")
	if err := deep.Create(); err != nil {
		t.Fatal(err)
	}
	if err := g.Set(&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0", Mems: "0"}}); err != nil && h.Unified() {
		t.Fatal(err)
	}
	if err := deep.Set(&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0"}}); err != nil {
		t.Fatal(err)
	}
	cmd := start(t, deep, "grep Cpus_allowed_list /proc/self/status >&2; exec sleep 1000")
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(cmd.Process.Pid, &set); err != nil || set.Count() != 1 || !set.IsSet(0) {
		t.Errorf("runs on %v, %v", set, err)
	}
}

func TestHugepages(t *testing.T) {
	h := detect(t)
	if h.version("hugetlb") == 0 {
		t.Skip("the host has no hugetlb controller")
	}
	if !h.Unified() {
		t.Skip("would enable the controller in the host's cgroup2 root")
	}
	g := newGroup(t, h)
	err := g.Set(&specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}})
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, g, "hugetlb", "", "hugetlb.2MB.max"); got != fmt.Sprint(4<<20) {
		t.Errorf("limit is %s", got)
	}
}
