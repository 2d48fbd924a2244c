package conformance

import (
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
	{"killed for memory", "ContainerStatus.reason LinuxContainerResources.memory_limit_in_bytes", func(t *testing.T, s *suite) {
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
