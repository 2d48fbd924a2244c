package conformance

import (
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// figureTests are about what the numbers of stats mean.
var figureTests = []test{
	{"processor", "CpuUsage.{timestamp,usage_core_nano_seconds,usage_nano_cores}", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "while :; do :; done")
		var before, after *runtimeapi.CpuUsage
		eventually(t, "it has a rate", func() bool {
			after = c.stats(t).GetCpu()
			if before == nil {
				before = after
			}
			return after.GetUsageNanoCores().GetValue() > 0 && after.GetUsageCoreNanoSeconds().GetValue() > before.GetUsageCoreNanoSeconds().GetValue()
		})
		if after.GetTimestamp() <= before.GetTimestamp() {
			t.Errorf("timestamps are %d and %d", before.GetTimestamp(), after.GetTimestamp())
		}
		// Another unit would be off by orders of magnitude.
		if rate, all := after.GetUsageNanoCores().GetValue(), uint64(runtime.NumCPU())*1_000_000_000; rate > 4*all {
			t.Errorf("one thread uses %d nanocores of the machine's %d", rate, all)
		}
	}},
	{"memory", "MemoryUsage.{timestamp,working_set_bytes,available_bytes,usage_bytes,rss_bytes,page_faults,major_page_faults}", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, burn, limited(64*mebibyte))
		c.says(t, "ready\n")
		m := c.stats(t).GetMemory()
		usage, set, rss := m.GetUsageBytes().GetValue(), m.GetWorkingSetBytes().GetValue(), m.GetRssBytes().GetValue()
		if m.GetTimestamp() == 0 || set == 0 || set > usage || rss == 0 || rss > usage || usage > 64*mebibyte {
			t.Errorf("usage %d, working set %d, rss %d at %d", usage, set, rss, m.GetTimestamp())
		}
		if got := m.GetAvailableBytes().GetValue(); got != 64*mebibyte-set {
			t.Errorf("%d are available with a working set of %d", got, set)
		}
		if m.GetPageFaults().GetValue() == 0 || m.GetMajorPageFaults() == nil {
			t.Errorf("page faults are %v, major ones %v", m.GetPageFaults(), m.GetMajorPageFaults())
		}
	}},
	{"memory without a limit", "MemoryUsage.usage_bytes", func(t *testing.T, s *suite) {
		m := s.pod(t).sh(t, "sleep 1000").stats(t).GetMemory()
		if m.GetUsageBytes() == nil || m.GetAvailableBytes() != nil {
			t.Errorf("memory is %v, want nothing said of what is available", m)
		}
	}},
	{"swap", "ContainerStats.swap SwapUsage.*", func(t *testing.T, s *suite) {
		config := func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = memory(64 * mebibyte)
			c.Linux.Resources.MemorySwapLimitInBytes = 80 * mebibyte
		}
		if !hasSwapAccounting() {
			t.Skip("the kernel does not account swap")
		}
		u := s.pod(t).sh(t, "sleep 1000", config).stats(t).GetSwap()
		used := u.GetSwapUsageBytes().GetValue()
		if u.GetTimestamp() == 0 || u.GetSwapUsageBytes() == nil || u.GetSwapAvailableBytes().GetValue() != 16*mebibyte-used {
			t.Errorf("swap is %v", u)
		}
	}},
	{"pressure", "ContainerStats.io LinuxPodSandboxStats.io IoUsage.* CpuUsage.psi MemoryUsage.psi PsiStats.* PsiData.*", func(t *testing.T, s *suite) {
		if !hasPressure() {
			t.Skip("the kernel does not measure pressure of control groups")
		}
		p := s.pod(t)
		// Two that want one processor wait for each other.
		c := p.sh(t, "while :; do :; done & while :; do :; done", func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100_000, CpuQuota: 20_000}
		})
		const millisecond = 1_000_000
		eventually(t, "it waits for the processor", func() bool {
			st := c.stats(t)
			for what, psi := range map[string]*runtimeapi.PsiStats{"cpu": st.GetCpu().GetPsi(), "memory": st.GetMemory().GetPsi(), "io": st.GetIo().GetPsi()} {
				if psi.GetFull() == nil || psi.GetSome() == nil {
					t.Fatalf("%s has pressure %v", what, psi)
				}
			}
			if st.GetIo().GetTimestamp() == 0 {
				t.Fatalf("io is %v", st.GetIo())
			}
			some := st.GetCpu().GetPsi().GetSome()
			return some.GetTotal() > 100*millisecond && some.GetAvg10() > 0
		})
		if l := p.stats(t).GetLinux(); l.GetCpu().GetPsi().GetSome().GetTotal() == 0 || l.GetMemory().GetPsi() == nil || l.GetIo().GetPsi() == nil {
			t.Errorf("the pod has the pressures %v, %v, %v", l.GetCpu().GetPsi(), l.GetMemory().GetPsi(), l.GetIo().GetPsi())
		}
	}},
	{"network", "LinuxPodSandboxStats.network NetworkUsage.* NetworkInterfaceUsage.*", func(t *testing.T, s *suite) {
		p := s.pod(t)
		c := p.sh(t, "ip link add other0 type veth; echo ready; exec 2>/dev/null; while :; do nc -w 1 192.0.2.1 9 < /dev/null; done", func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}}
		})
		c.says(t, "ready\n")
		var n *runtimeapi.NetworkUsage
		eventually(t, "what it sends is counted", func() bool {
			n = p.stats(t).GetLinux().GetNetwork()
			return n.GetDefaultInterface().GetTxBytes().GetValue() > 0
		})
		if d := n.GetDefaultInterface(); n.GetTimestamp() == 0 || d.GetName() != "eth0" || d.GetRxBytes() == nil || d.GetRxErrors() == nil || d.GetTxErrors() == nil {
			t.Errorf("default interface at %d: %v", n.GetTimestamp(), d)
		}
		var others []string
		for _, i := range n.GetInterfaces() {
			others = append(others, i.GetName())
		}
		if !slices.Contains(others, "other0") || slices.Contains(others, "eth0") {
			t.Errorf("interfaces beside the default one are %q", others)
		}
	}},
	{"no network of the host's", "LinuxPodSandboxStats.cpu", func(t *testing.T, s *suite) {
		p := s.pod(t, func(c *runtimeapi.PodSandboxConfig) {
			c.Hostname = ""
			c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		})
		if n := p.stats(t).GetLinux().GetNetwork(); n != nil {
			t.Errorf("a pod in the host's network has the usage %v", n)
		}
	}},
	{"processes", "LinuxPodSandboxStats.{cpu,process} ProcessUsage.*", func(t *testing.T, s *suite) {
		p := s.pod(t)
		p.sh(t, "sleep 1000 & sleep 1000 & wait")
		p.sh(t, "sleep 1000 & wait")
		eventually(t, "five processes run", func() bool {
			l := p.stats(t).GetLinux()
			u := l.GetProcess()
			return l.GetCpu().GetUsageCoreNanoSeconds().GetValue() > 0 && u.GetTimestamp() > 0 && u.GetProcessCount().GetValue() == 5
		})
	}},
	{"writable layer", "ContainerStats.writable_layer FilesystemUsage.{timestamp,fs_id,used_bytes,inodes_used} FilesystemIdentifier.mountpoint", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "mkdir /many; for i in $(seq 100); do echo $i > /many/$i; done; dd if=/dev/urandom of=/big bs=1M count=3 2>/dev/null; ln /big /again; echo ready; sleep 1000")
		c.says(t, "ready\n")
		var u *runtimeapi.FilesystemUsage
		eventually(t, "all of it is counted", func() bool {
			u = c.stats(t).GetWritableLayer()
			return u.GetUsedBytes().GetValue() >= 3*mebibyte && u.GetInodesUsed().GetValue() >= 102
		})
		if used := u.GetUsedBytes().GetValue(); used > 5*mebibyte {
			t.Errorf("%d bytes are used: one file with two names counts twice", used)
		}
		if _, err := os.Stat(u.GetFsId().GetMountpoint()); err != nil || u.GetTimestamp() == 0 {
			t.Errorf("file system is %v at %d", u.GetFsId(), u.GetTimestamp())
		}
	}},
	{"of an exited container", "ContainerStats", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "dd if=/dev/urandom of=/big bs=1M count=1 2>/dev/null")
		c.exited(t)
		eventually(t, "its writable layer is counted", func() bool {
			st := c.stats(t)
			if n := st.GetMemory().GetWorkingSetBytes().GetValue(); n > 0 {
				t.Fatalf("it uses %d bytes of memory", n)
			}
			return st.GetWritableLayer().GetUsedBytes().GetValue() >= mebibyte
		})
	}},
	{"list of sandboxes", "ListPodSandboxStats ListPodSandboxStatsRequest.filter ListPodSandboxStatsResponse.stats PodSandboxStatsFilter.* " +
		"PodSandboxAttributes.{labels,annotations} ContainerAttributes.{metadata,annotations}", func(t *testing.T, s *suite) {
		p, stopped := s.pod(t), s.pod(t)
		c := p.sh(t, "sleep 1000")
		stopped.stop(t)
		for name, filter := range map[string]*runtimeapi.PodSandboxStatsFilter{
			"by id":    {Id: p.id},
			"by label": {LabelSelector: map[string]string{runLabel: s.run}},
			"by both":  {Id: p.id, LabelSelector: map[string]string{"uid": p.config.Labels["uid"]}},
		} {
			list := s.podStats(t, filter)
			if len(list) != 1 || list[0].GetAttributes().GetId() != p.id {
				t.Fatalf("%s: stats are %v", name, list)
			}
			a := list[0].GetAttributes()
			if !maps.Equal(a.GetLabels(), p.config.GetLabels()) || !maps.Equal(a.GetAnnotations(), p.config.GetAnnotations()) {
				t.Errorf("%s: attributes are %v", name, a)
			}
			if of := list[0].GetLinux().GetContainers(); len(of) != 1 || of[0].GetAttributes().GetId() != c.id ||
				of[0].GetAttributes().GetMetadata().GetName() == "" || len(of[0].GetAttributes().GetAnnotations()) == 0 {
				t.Errorf("%s: containers are %v", name, of)
			}
		}
		for name, filter := range map[string]*runtimeapi.PodSandboxStatsFilter{
			"unknown id":    {Id: "no-such-pod"},
			"unknown label": {LabelSelector: map[string]string{runLabel: "none"}},
			"one of two":    {Id: p.id, LabelSelector: map[string]string{runLabel: "none"}},
			"not ready":     {Id: stopped.id},
		} {
			if list := s.podStats(t, filter); len(list) != 0 {
				t.Errorf("%s: stats are %v", name, list)
			}
		}
	}},
}

// hasPressure tells whether the host measures pressure of control groups.
func hasPressure() bool {
	for _, file := range []string{"/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/unified/cgroup.controllers"} {
		if _, err := os.Stat(file); err == nil {
			_, err := os.ReadFile("/proc/pressure/cpu")
			return err == nil
		}
	}
	return false
}

// hasSwapAccounting tells whether the kernel counts swap by control group.
func hasSwapAccounting() bool {
	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"); err == nil {
		return true
	}
	b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	_, noSwap := os.Stat("/proc/swaps")
	return err == nil && noSwap == nil && slices.Contains(strings.Fields(string(b)), "memory")
}

// stats asks for a container's stats.
func (c *container) stats(t *testing.T) *runtimeapi.ContainerStats {
	t.Helper()
	r, err := c.Runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: c.id})
	if err != nil {
		t.Fatalf("container stats: %v", err)
	}
	return r.GetStats()
}

// stats asks for a sandbox's stats.
func (p *pod) stats(t *testing.T) *runtimeapi.PodSandboxStats {
	t.Helper()
	r, err := p.Runtime.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatalf("sandbox stats: %v", err)
	}
	return r.GetStats()
}

func (s *suite) podStats(t *testing.T, filter *runtimeapi.PodSandboxStatsFilter) []*runtimeapi.PodSandboxStats {
	t.Helper()
	r, err := s.Runtime.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: filter})
	if err != nil {
		t.Fatalf("list sandbox stats: %v", err)
	}
	return r.GetStats()
}
