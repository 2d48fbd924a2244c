package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const mebibyte = 1 << 20

// memoryLimit prints the limit that the container's cgroup has, on cgroup v2,
// on v1 with a cgroup namespace, and on v1 without one.
const memoryLimit = `for f in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do test -e $f && cat $f; done; true`

var resourceTests = []test{
	{"memory limit is the cgroup's", "LinuxContainerConfig.resources LinuxContainerResources.memory_limit_in_bytes " +
		"ContainerStatus.resources ContainerResources.linux", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "sleep 1000", limited(64*mebibyte))
		if got := c.exec(t, "sh", "-c", memoryLimit); got != "67108864" {
			t.Errorf("the container sees the limit %q", got)
		}
		if got := c.status(t).GetResources().GetLinux().GetMemoryLimitInBytes(); got != 64*mebibyte {
			t.Errorf("status has the limit %d", got)
		}
	}},
	{"update while it runs", "UpdateContainerResources UpdateContainerResourcesRequest.{container_id,linux} " +
		"LinuxContainerResources.memory_limit_in_bytes", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "sleep 1000", limited(64*mebibyte))
		c.update(t, 96*mebibyte)
		if got := c.exec(t, "sh", "-c", memoryLimit); got != "100663296" {
			t.Errorf("the container sees the limit %q", got)
		}
	}},
	{"update before it starts", "UpdateContainerResources", func(t *testing.T, s *suite) {
		p := s.pod(t)
		config := p.script("c", "sleep 1000")
		limited(64 * mebibyte)(config)
		c := p.create(t, config)
		c.update(t, 96*mebibyte)
		c.start(t)
		if got := c.exec(t, "sh", "-c", memoryLimit); got != "100663296" {
			t.Errorf("the container sees the limit %q", got)
		}
	}},
	{"update of an unknown container", "UpdateContainerResources", func(t *testing.T, s *suite) {
		_, err := s.Runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: "no-such-container", Linux: &runtimeapi.LinuxContainerResources{CpuShares: 100}})
		wantCode(t, "update", err, codes.NotFound)
	}},
	{"killed for memory", "ContainerStatus.{reason,message} LinuxContainerResources.memory_limit_in_bytes", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "dd if=/dev/zero of=/dev/null bs=100M count=1; exit $?", limited(16*mebibyte))
		if status := c.exited(t); status.GetReason() != "OOMKilled" || status.GetExitCode() != 137 {
			t.Errorf("reason is %q, exit code %d", status.GetReason(), status.GetExitCode())
		}
	}},
	{"small memory limit starts", "LinuxContainerResources.memory_limit_in_bytes", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "echo runs", limited(8*mebibyte))
		if got := c.output(t); got != "runs\n" {
			t.Errorf("output is %q", got)
		}
	}},
	{"cpu", "LinuxContainerResources.{cpu_shares,cpu_quota,cpu_period,cpuset_cpus,cpuset_mems}", cpuLimits},
	{"swap", "LinuxContainerResources.memory_swap_limit_in_bytes", swapLimit},
	{"huge pages", "LinuxContainerResources.hugepage_limits HugepageLimit.*", hugePages},
	{"no huge pages", "CreateContainer", noHugePages},
	{"unified", "LinuxContainerResources.unified", unified},
	{"update takes all or nothing", "UpdateContainerResources UpdateContainerResourcesRequest.annotations", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "sleep 1000", limited(64*mebibyte))
		_, err := s.Runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: c.id, Annotations: map[string]string{"podstead.test/x": "y"},
			Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 * mebibyte, CpusetCpus: "9999"},
		})
		wantError(t, "an update with a processor that no machine has", err)
		if got := c.exec(t, "sh", "-c", memoryLimit); got != "67108864" {
			t.Errorf("after the failed update the container sees the limit %q", got)
		}
		if got := c.status(t).GetResources().GetLinux(); got.GetMemoryLimitInBytes() != 64*mebibyte || got.GetCpusetCpus() != "" {
			t.Errorf("status has the limits %v", got)
		}
	}},
	{"memory below what is in use is refused", "UpdateContainerResources", func(t *testing.T, s *suite) {
		if b, err := os.ReadFile("/proc/swaps"); err == nil && strings.Count(string(b), "\n") > 1 {
			t.Skip("the host can swap what is in use")
		}
		c := s.pod(t).sh(t, "dd if=/dev/zero of=/dev/shm/file bs=1M count=40 2>/dev/null; echo ready; sleep 1000", limited(60*mebibyte))
		c.says(t, "ready\n")
		_, err := s.Runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: memory(16 * mebibyte)})
		wantError(t, "a limit of 16 MiB with 40 MiB in use", err)
		if got := c.exec(t, "sh", "-c", memoryLimit); got != fmt.Sprint(60*mebibyte) {
			t.Errorf("after the failed update the container sees the limit %q", got)
		}
		if status := c.status(t); status.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING ||
			status.GetResources().GetLinux().GetMemoryLimitInBytes() != 60*mebibyte {
			t.Errorf("status is %v, limits %v", status.GetState(), status.GetResources().GetLinux())
		}
	}},
	{"caches make room for a lower limit", "UpdateContainerResources", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "dd if=/dev/zero of=/file bs=1M count=40 2>/dev/null; sync; echo ready; sleep 1000", limited(60*mebibyte))
		c.says(t, "ready\n")
		c.update(t, 16*mebibyte)
		if got := c.exec(t, "sh", "-c", memoryLimit); got != fmt.Sprint(16*mebibyte) {
			t.Errorf("the container sees the limit %q", got)
		}
	}},
	{"update of memory alone", "UpdateContainerResources LinuxContainerResources.memory_swap_limit_in_bytes", func(t *testing.T, s *suite) {
		if !hasSwapAccounting() {
			t.Skip("the kernel does not account swap")
		}
		c := s.pod(t).sh(t, "sleep 1000", func(config *runtimeapi.ContainerConfig) {
			config.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 * mebibyte, MemorySwapLimitInBytes: 64 * mebibyte}
		})
		_, err := s.Runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: c.id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 80 * mebibyte},
		})
		if err != nil {
			t.Fatalf("update: %v", err)
		}
		if got := c.exec(t, "sh", "-c", memoryLimit); got != fmt.Sprint(80*mebibyte) {
			t.Errorf("the container sees the limit %q", got)
		}
		// v1 has a limit of both together.
		if got := c.cgroupFile(t, "memory.swap.max", "memory/memory.memsw.limit_in_bytes"); got != "0" && got != fmt.Sprint(80*mebibyte) {
			t.Errorf("the limit of swap is %s", got)
		}
		if got := c.status(t).GetResources().GetLinux().GetMemorySwapLimitInBytes(); got != 80*mebibyte {
			t.Errorf("status has the limit %d of memory and swap", got)
		}
	}},
	{"status has the oom score of the process", "LinuxContainerResources.oom_score_adj UpdateContainerResources", func(t *testing.T, s *suite) {
		// It may take more privilege than there is to lower it.
		c := s.pod(t).sh(t, "sleep 1000", func(config *runtimeapi.ContainerConfig) {
			config.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: -500}
		})
		check := func(when string) {
			t.Helper()
			if got, want := fmt.Sprint(c.status(t).GetResources().GetLinux().GetOomScoreAdj()), c.exec(t, "cat", "/proc/1/oom_score_adj"); got != want {
				t.Errorf("%s: status has %s, the process %s", when, got, want)
			}
		}
		check("at first")
		_, err := s.Runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: c.id, Linux: &runtimeapi.LinuxContainerResources{OomScoreAdj: 700},
		})
		if err != nil {
			t.Fatal(err)
		}
		check("after an update")
	}},
	{"oom score", "LinuxContainerResources.oom_score_adj", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "cat /proc/self/oom_score_adj", func(config *runtimeapi.ContainerConfig) {
			config.Linux.Resources.OomScoreAdj = 900
		})
		if got := c.output(t); got != "900\n" {
			t.Errorf("output is %q", got)
		}
	}},
}

// limited sets a memory limit. Swap is not to lift it.
func limited(bytes int64) func(*runtimeapi.ContainerConfig) {
	return func(config *runtimeapi.ContainerConfig) {
		config.Linux.Resources = memory(bytes)
	}
}

func memory(bytes int64) *runtimeapi.LinuxContainerResources {
	return &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: bytes, CpuShares: 512, CpuPeriod: 100000, CpuQuota: 200000}
}

func (c *container) update(t *testing.T, bytes int64) {
	t.Helper()
	_, err := c.Runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: memory(bytes)})
	if err != nil {
		t.Fatalf("update: %v", err)
	}
	if got := c.status(t).GetResources().GetLinux().GetMemoryLimitInBytes(); got != bytes {
		t.Errorf("status has the limit %d after the update", got)
	}
}

// cgroupFile reads a file of the container's cgroup as the container sees it:
// by its name on v2, or by that on v1, which has the controller before it.
func (c *container) cgroupFile(t *testing.T, v2, v1 string) string {
	t.Helper()
	script := fmt.Sprintf("cd /sys/fs/cgroup; test -e cgroup.controllers && cat %s || cat %s", v2, v1)
	return strings.Join(strings.Fields(c.exec(t, "sh", "-c", script)), " ")
}

func cpuLimits(t *testing.T, s *suite) {
	c := s.pod(t).sh(t, "sleep 1000", func(config *runtimeapi.ContainerConfig) {
		config.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 2048, CpuQuota: 50000, CpuPeriod: 200000, CpusetCpus: "0", CpusetMems: "0"}
	})
	want := func(when string, files map[[2]string][]string) {
		for file, want := range files {
			if got := c.cgroupFile(t, file[0], file[1]); !slices.Contains(want, got) {
				t.Errorf("%s: %s or %s is %q, want one of %q", when, file[0], file[1], got, want)
			}
		}
	}
	// The weight for 2048 shares depends on the formula, which runc changed.
	want("at first", map[[2]string][]string{
		{"cpu.weight", "cpu/cpu.shares"}:                {"2048", "79", "174"},
		{"cpu.max", "cpu/cpu.cfs_quota_us"}:             {"50000", "50000 200000"},
		{"cpu.max", "cpu/cpu.cfs_period_us"}:            {"200000", "50000 200000"},
		{"cpuset.cpus.effective", "cpuset/cpuset.cpus"}: {"0"},
		{"cpuset.mems.effective", "cpuset/cpuset.mems"}: {"0"},
	})
	_, err := s.Runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: c.id, Linux: &runtimeapi.LinuxContainerResources{CpuQuota: 80000, CpuPeriod: 100000, CpuShares: 2},
	})
	if err != nil {
		t.Fatal(err)
	}
	want("after an update", map[[2]string][]string{
		{"cpu.weight", "cpu/cpu.shares"}:     {"2", "1"},
		{"cpu.max", "cpu/cpu.cfs_quota_us"}:  {"80000", "80000 100000"},
		{"cpu.max", "cpu/cpu.cfs_period_us"}: {"100000", "80000 100000"},
	})
	r := c.status(t).GetResources().GetLinux()
	if r.GetCpuQuota() != 80000 || r.GetCpuPeriod() != 100000 || r.GetCpuShares() != 2 || r.GetCpusetCpus() != "0" {
		t.Errorf("status has the limits %v", r)
	}
}

func swapLimit(t *testing.T, s *suite) {
	c := s.pod(t).sh(t, "sleep 1000", func(config *runtimeapi.ContainerConfig) {
		config.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 * mebibyte, MemorySwapLimitInBytes: 96 * mebibyte}
	})
	if c.exec(t, "sh", "-c", "cd /sys/fs/cgroup; ls memory.swap.max memory/memory.memsw.limit_in_bytes 2>/dev/null; true") == "" {
		t.Skip("the kernel does not account swap")
	}
	// v1 has a limit of both together.
	if got := c.cgroupFile(t, "memory.swap.max", "memory/memory.memsw.limit_in_bytes"); got != fmt.Sprint(32*mebibyte) && got != fmt.Sprint(96*mebibyte) {
		t.Errorf("the limit is %s", got)
	}
	if got := c.status(t).GetResources().GetLinux().GetMemorySwapLimitInBytes(); got != 96*mebibyte {
		t.Errorf("status has the limit %d", got)
	}
}

// hugePages looks at the limit from the host: few containers see it.
func hugePages(t *testing.T, s *suite) {
	if _, err := os.Stat("/sys/kernel/mm/hugepages/hugepages-2048kB"); err != nil {
		t.Skip("the machine has no huge pages of 2 MB")
	}
	p := s.pod(t)
	c := p.sh(t, "sleep 1000", func(config *runtimeapi.ContainerConfig) {
		config.Linux.Resources = &runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 * mebibyte}}}
	})
	var files []string
	for _, top := range []string{"", "/hugetlb", "/unified"} {
		for _, name := range []string{"max", "limit_in_bytes"} {
			files = append(files, glob(t, "/sys/fs/cgroup"+top+p.config.GetLinux().GetCgroupParent()+"/*"+c.id+"*/hugetlb.2MB."+name)...)
		}
	}
	if len(files) != 1 {
		t.Skipf("huge pages of the container are counted nowhere: %q", files)
	}
	if got := c.status(t).GetResources().GetLinux().GetHugepageLimits(); len(got) != 1 || got[0].GetLimit() != 4*mebibyte {
		t.Errorf("status has the limits %v", got)
	}
	for file, want := range map[string]string{files[0]: fmt.Sprint(4 * mebibyte), filepath.Dir(files[0]) + "/cgroup.procs": ""} {
		b, err := os.ReadFile(file)
		got := strings.TrimSpace(string(b))
		if err != nil || got == "" || want != "" && got != want {
			t.Errorf("%s is %q, %v", file, got, err)
		}
	}
}

// noHugePages says what a kubelet says of a container that asks for none: of each
// size that the host has, nothing. It must run, whoever counts huge pages.
func noHugePages(t *testing.T, s *suite) {
	sizes := map[string]string{"hugepages-2048kB": "2MB", "hugepages-1048576kB": "1GB"}
	c := s.pod(t).sh(t, "echo runs", func(config *runtimeapi.ContainerConfig) {
		for dir, size := range sizes {
			if len(glob(t, "/sys/kernel/mm/hugepages/"+dir)) > 0 {
				config.Linux.Resources.HugepageLimits = append(config.Linux.Resources.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: size})
			}
		}
	})
	if got := c.output(t); got != "runs\n" {
		t.Errorf("output is %q", got)
	}
}

// unified is obeyed on cgroup v2 and refused elsewhere, never ignored.
func unified(t *testing.T, s *suite) {
	p := s.pod(t)
	with := func(key, value string) func(*runtimeapi.ContainerConfig) {
		return func(config *runtimeapi.ContainerConfig) {
			config.Linux.Resources = &runtimeapi.LinuxContainerResources{Unified: map[string]string{key: value}}
		}
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		wantError(t, "unified without cgroup v2", p.refuses(t, with("memory.high", "64M")))
		return
	}
	c := p.sh(t, "sleep 1000", with("memory.high", fmt.Sprint(64*mebibyte)))
	if got := c.cgroupFile(t, "memory.high", ""); got != fmt.Sprint(64*mebibyte) {
		t.Errorf("memory.high is %s", got)
	}
	wantError(t, "what is no file of a cgroup", p.refuses(t, with("../x", "1")))
	wantError(t, "an unknown file", p.refuses(t, with("memory.no-such", "1")))
}
