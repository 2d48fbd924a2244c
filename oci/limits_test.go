package oci

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/cgroup"
)

func TestLimits(t *testing.T) {
	onBoth(t, func(b *box) {
		b.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr[int64](32 << 20)}
		b.spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: ptr[int64](20)}
		b.spec.Linux.Resources.CPU = &specs.LinuxCPU{Shares: ptr[uint64](512)}
		b.up()
		// runc returns from start while its own threads still are in the group.
		b.eventually("one process", func() bool { s, _ := b.group().Stats(); return s.Pids == 1 })
		check := func(want uint64) {
			b.Helper()
			s, err := b.group().Stats()
			if err != nil || s.MemoryLimitBytes != want || s.Pids != 1 {
				b.Errorf("%+v, %v", s, err)
			}
		}
		check(32 << 20)
		b.must("update", "--memory", fmt.Sprint(64<<20), b.id)
		check(64 << 20)
		cmd := b.cmd("update", "-r", "-", b.id)
		cmd.Stdin = strings.NewReader(`{"memory": {"limit": 50331648}}`)
		if r := b.runWith(cmd); r.code != 0 {
			b.Error(r.stderr)
		}
		check(48 << 20)
		b.fails([]string{"cpu.cpus"}, "update", "--cpuset-cpus", "4000", b.id)
		var e struct {
			Type, ID string
			Data     struct {
				Memory struct{ Usage struct{ Limit, Usage uint64 } }
				Pids   struct{ Current uint64 }
			}
		}
		out := b.must("events", "--stats", b.id)
		if err := json.Unmarshal([]byte(out), &e); err != nil || e.Type != "stats" || e.ID != b.id ||
			e.Data.Memory.Usage.Limit != 48<<20 || e.Data.Memory.Usage.Usage == 0 || e.Data.Pids.Current != 1 {
			b.Errorf("%s: %+v, %v", out, e, err)
		}
	})
}

// TestOOMGroup: a container whose group is killed as a whole for its memory does
// not outlive one of its processes; another does.
func TestOOMGroup(t *testing.T) {
	if h, err := cgroup.Detect(); err != nil || !h.Unified() {
		t.Skip("needs cgroup v2")
	}
	onBoth(t, func(b *box) {
		b.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr[int64](32 << 20), Swap: ptr[int64](32 << 20)}
		b.script("busybox tail /dev/zero; exit 7")
		for group, want := range map[string]int{"0": 7, "1": 137} {
			b.spec.Linux.Resources.Unified = map[string]string{"memory.oom.group": group}
			b.write()
			if r := b.run("run", "-b", b.bundle, b.id); r.code != want {
				b.Errorf("memory.oom.group %s: %+v, want %d", group, r, want)
			}
		}
	})
}

// The preparation must not count against the container's memory.
func TestSmallMemoryLimit(t *testing.T) {
	b := newBox(t, "")
	b.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr[int64](512 << 10)}
	b.script("exit 4")
	b.write()
	if r := b.run("run", "-b", b.bundle, b.id); r.code != 4 {
		t.Errorf("%+v", r)
	}
}

// TestLimitsOfTheGroup sets limits that only the kernel's files show.
func TestLimitsOfTheGroup(t *testing.T) {
	onBoth(t, func(b *box) {
		r := b.spec.Linux.Resources
		disk, ok := anyDisk()
		device := specs.LinuxBlockIODevice{Major: int64(unix.Major(disk)), Minor: int64(unix.Minor(disk))}
		number := fmt.Sprintf("%d:%d", device.Major, device.Minor)
		want := map[string]string{}
		v1 := b.group().JoinFile("memory") != ""
		note := func(name1, value1, name2, value2 string) {
			if !v1 && name2 != "" {
				want[filepath.Join("/sys/fs/cgroup", b.spec.Linux.CgroupsPath, name2)] = value2
			} else if controller, name, _ := strings.Cut(name1, "/"); v1 {
				want[filepath.Join("/sys/fs/cgroup", controller, b.spec.Linux.CgroupsPath, name)] = value1
			}
		}
		if ok {
			rate := func(n uint64) []specs.LinuxThrottleDevice {
				return []specs.LinuxThrottleDevice{{LinuxBlockIODevice: device, Rate: n}}
			}
			r.BlockIO = &specs.LinuxBlockIO{
				ThrottleReadBpsDevice: rate(1 << 20), ThrottleWriteBpsDevice: rate(2 << 20),
				ThrottleReadIOPSDevice: rate(300), ThrottleWriteIOPSDevice: rate(400),
			}
			note("blkio/blkio.throttle.read_bps_device", number+" 1048576", "io.max", number+" rbps=1048576 wbps=2097152 riops=300 wiops=400")
			note("blkio/blkio.throttle.write_iops_device", number+" 400", "io.max", number+" rbps=1048576 wbps=2097152 riops=300 wiops=400")
		}
		if files, _ := filepath.Glob("/sys/fs/cgroup/blkio/*/blkio.bfq.weight"); len(files) > 0 && filepath.Base(b.runtime) != "crun" { // which knows an older name
			if r.BlockIO == nil {
				r.BlockIO = &specs.LinuxBlockIO{}
			}
			r.BlockIO.Weight = ptr[uint16](123)
			note("blkio/blkio.bfq.weight", "123", "", "")
		}
		if has("/sys/fs/cgroup/cpu/cpu.rt_runtime_us") {
			r.CPU = &specs.LinuxCPU{RealtimePeriod: ptr[uint64](500000), RealtimeRuntime: ptr[int64](1000)}
			note("cpu/cpu.rt_period_us", "500000", "", "")
			note("cpu/cpu.rt_runtime_us", "1000", "", "")
		}
		if !v1 || has("/sys/fs/cgroup/hugetlb") {
			r.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}
			note("hugetlb/hugetlb.2MB.limit_in_bytes", "4194304", "hugetlb.2MB.max", "4194304")
		}
		b.up()
		for file, value := range want {
			if got, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(got)) != value {
				b.Errorf("%s: %q, %v, want %q", file, got, err, value)
			}
		}
	})
}

// anyDisk is the number of a block device that can be throttled.
func anyDisk() (uint64, bool) {
	files, _ := filepath.Glob("/sys/block/*/dev")
	for _, file := range files {
		var major, minor uint32
		text, err := os.ReadFile(file)
		if _, serr := fmt.Sscanf(string(text), "%d:%d", &major, &minor); err == nil && serr == nil {
			return unix.Mkdev(major, minor), true
		}
	}
	return 0, false
}

// TestCheckBeforeUpdate: a limit that is less than what is used is not set.
func TestCheckBeforeUpdate(t *testing.T) {
	onBoth(t, func(b *box) {
		if b.group().JoinFile("memory") == "" { // cgroup v1 does not need to be told so
			b.needs("1.2", "1.7")
		}
		b.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr[int64](64 << 20), Swap: ptr[int64](64 << 20)}
		b.script("head -c 20000000 /dev/zero >/dev/shm/file; touch /ready; sleep 1000")
		b.up()
		b.eventually("the file", func() bool { return b.has("ready") })
		cmd := b.cmd("update", "-r", "-", b.id)
		cmd.Stdin = strings.NewReader(`{"memory":{"limit":10000000,"swap":10000000,"checkBeforeUpdate":true}}`)
		if r := b.runWith(cmd); r.code == 0 || b.ours && !strings.Contains(r.stderr, "memory.limit") {
			b.Errorf("%+v", r)
		}
		if s, err := b.group().Stats(); err != nil || s.MemoryLimitBytes != 64<<20 {
			b.Errorf("%+v, %v", s, err)
		}
	})
}

// TestUpdateFlags changes each limit of a running container by its flag.
func TestUpdateFlags(t *testing.T) {
	onBoth(t, func(b *box) {
		b.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr[int64](64 << 20), Swap: ptr[int64](64 << 20)}
		b.up()
		v1 := b.group().JoinFile("memory") != ""
		// In this order: a cgroup that is idle takes no shares.
		for _, c := range []struct{ flag, value, v1, want1, v2, want2 string }{
			{"--memory-reservation", "33554432", "memory/memory.soft_limit_in_bytes", "33554432", "memory.low", "33554432"},
			{"--memory-swap", "134217728", "memory/memory.memsw.limit_in_bytes", "134217728", "memory.swap.max", "67108864"},
			{"--cpu-share", "2048", "cpu/cpu.shares", "2048", "cpu.weight", "174"},
			{"--cpu-quota", "50000", "cpu/cpu.cfs_quota_us", "50000", "cpu.max", "50000 100000"},
			{"--cpu-period", "50000", "cpu/cpu.cfs_period_us", "50000", "", ""},
			{"--cpu-burst", "1000", "cpu/cpu.cfs_burst_us", "1000", "cpu.max.burst", "1000"},
			{"--cpuset-cpus", "0", "cpuset/cpuset.cpus", "0", "cpuset.cpus", "0"},
			{"--cpuset-mems", "0", "cpuset/cpuset.mems", "0", "cpuset.mems", "0"},
			{"--pids-limit", "33", "pids/pids.max", "33", "pids.max", "33"},
			{"--kernel-memory-tcp", "1048576", "memory/memory.kmem.tcp.limit_in_bytes", "1048576", "", ""},
			{"--cpu-idle", "1", "cpu/cpu.idle", "1", "cpu.idle", "1"},
		} {
			if !v1 && !b.ours && (c.flag == "--memory-swap" || c.flag == "--cpu-share") {
				continue // they want the memory limit again, and compute another weight
			}
			if c.flag == "--cpu-burst" || c.flag == "--cpu-idle" || c.flag == "--kernel-memory-tcp" {
				if !b.ours {
					continue // came later, or is ignored
				}
			}
			file, want := "/sys/fs/cgroup/"+c.v2, c.want2
			if v1 {
				dir, name, _ := strings.Cut(c.v1, "/")
				file, want = filepath.Join("/sys/fs/cgroup", dir, b.spec.Linux.CgroupsPath, name), c.want1
			} else if file = filepath.Join("/sys/fs/cgroup", b.spec.Linux.CgroupsPath, c.v2); c.v2 == "" {
				continue
			}
			b.must("update", c.flag, c.value, b.id)
			if got, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(got)) != want {
				b.Errorf("%s %s: %s has %q, %v; want %q", c.flag, c.value, file, got, err, want)
			}
		}
		if !b.ours {
			return
		}
		b.fails([]string{"memory.kernel"}, "update", "--kernel-memory", "1048576", b.id)
		b.fails(nil, "update", "--pids-limit", "many", b.id)
	})
}

// TestUpdateIfThere updates what not every kernel or machine has, and is told where
// it has not.
func TestUpdateIfThere(t *testing.T) {
	onBoth(t, func(b *box) {
		b.up()
		if !has("/sys/fs/resctrl/schemata") {
			b.fails(nil, "update", "--l3-cache-schema", "L3:0=1", b.id)
			b.fails(nil, "update", "--mem-bw-schema", "MB:0=20", b.id)
		}
		if b.group().JoinFile("memory") == "" {
			if !b.ours {
				return // they pass over what cgroup v2 does not have
			}
			b.fails([]string{"cpu.realtime"}, "update", "--cpu-rt-period", "500000", "--cpu-rt-runtime", "1000", b.id)
			return
		}
		for _, c := range []struct{ controller, file, value, field, flags string }{
			{"cpu", "cpu.rt_runtime_us", "1000", "cpu.realtime", "--cpu-rt-period 500000 --cpu-rt-runtime 1000"},
			{"blkio", "blkio.bfq.weight", "123", "blockIO.weight", "--blkio-weight 123"},
		} {
			file := filepath.Join("/sys/fs/cgroup", c.controller, b.spec.Linux.CgroupsPath, c.file)
			args := append(append([]string{"update"}, strings.Fields(c.flags)...), b.id)
			if !has(file) {
				b.fails([]string{c.field}, args...)
				continue
			}
			b.must(args...)
			if got, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(got)) != c.value {
				b.Errorf("%s has %q, %v; want %s", file, got, err, c.value)
			}
		}
	})
}

// TestUpdateDevices gives a running container a device, and takes it away, as
// callers do that pass all of linux.resources.
func TestUpdateDevices(t *testing.T) {
	b := newBox(t, "")
	b.spec.Process.Capabilities.Bounding = append(b.spec.Process.Capabilities.Bounding, "CAP_MKNOD")
	b.spec.Process.Capabilities.Permitted = append(b.spec.Process.Capabilities.Permitted, "CAP_MKNOD")
	b.spec.Process.Capabilities.Effective = append(b.spec.Process.Capabilities.Effective, "CAP_MKNOD")
	b.up()
	b.must("exec", b.id, "mknod", "/nothing", "c", "1", "10")
	for _, rules := range []struct {
		json, want string
	}{
		{`{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":10,"access":"rw"}]}`, "No such device"},
		{`{"devices":[{"allow":false,"access":"rwm"}]}`, "not permitted"},
	} {
		cmd := b.cmd("update", "-r", "-", b.id)
		cmd.Stdin = strings.NewReader(rules.json)
		if r := b.runWith(cmd); r.code != 0 {
			t.Fatal(r.stderr)
		}
		if r := b.run("exec", b.id, "sh", "-c", "exec 3</nothing"); !strings.Contains(r.stderr, rules.want) {
			t.Errorf("%s: %+v", rules.json, r)
		}
	}
}

func TestEventsForm(t *testing.T) {
	onBoth(t, func(b *box) {
		b.spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: ptr[int64](77)}
		b.up()
		var e struct {
			Data struct {
				CPU struct {
					Usage      struct{ Total, Kernel, User *uint64 }
					Throttling map[string]uint64
				}
				Memory struct {
					Usage struct{ Limit, Usage, Failcnt *uint64 }
					Raw   map[string]uint64
				}
				Pids     struct{ Current, Limit uint64 }
				Hugetlb  map[string]struct{ Failcnt *uint64 }
				Blkio    map[string]any
				IntelRdt map[string]any `json:"intel_rdt"`
			}
		}
		out := b.must("events", "--stats", b.id)
		if err := json.Unmarshal([]byte(out), &e); err != nil || e.Data.Pids.Limit != 77 || e.Data.CPU.Usage.User == nil ||
			e.Data.Memory.Usage.Failcnt == nil || e.Data.Hugetlb == nil || e.Data.Blkio == nil || e.Data.IntelRdt == nil {
			b.Errorf("%v: %s", err, out)
		}
	})
}

// TestEventsInterval writes a line at each interval, until the container ends.
func TestEventsInterval(t *testing.T) {
	onBoth(t, func(b *box) {
		b.up()
		out, in, err := os.Pipe()
		if err != nil {
			b.Fatal(err)
		}
		cmd := b.cmd("events", "--interval", "20ms", b.id)
		cmd.Stdout = in
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		in.Close()
		buf := make([]byte, 1<<16)
		for lines := 0; lines < 3; {
			n, err := out.Read(buf)
			if err != nil {
				b.Fatal(err)
			}
			lines += strings.Count(string(buf[:n]), "\n")
		}
		b.must("kill", b.id, "KILL")
		b.stopped()
		b.must("delete", b.id)
		go io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil && b.ours {
			b.Error(err)
		}
	})
}
