package conformance

import (
	"os"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// burn makes a container that has used some of everything.
const burn = "seq 1 50000 > /tmp/file; echo ready; sleep 1000"

var statsTests = []test{
	{"of a container", "ContainerStats ContainerStatsRequest.* ContainerStatsResponse.* " +
		"ContainerStats.{attributes,cpu,memory,writable_layer} ContainerAttributes.{id,labels} " +
		"CpuUsage.{timestamp,usage_core_nano_seconds} MemoryUsage.working_set_bytes " +
		"FilesystemUsage.used_bytes", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, burn)
		c.says(t, "ready\n")
		eventually(t, "its figures are there", func() bool {
			r, err := s.Runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: c.id})
			if err != nil {
				t.Fatal(err)
			}
			return c.usesSomething(t, r.GetStats())
		})
	}},
	{"of an unknown container", "ContainerStats", func(t *testing.T, s *suite) {
		_, err := s.Runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: "no-such-container"})
		wantCode(t, "stats", err, codes.NotFound)
	}},
	{"list holds what runs", "ListContainerStats ListContainerStatsRequest.filter ListContainerStatsResponse.stats " +
		"ContainerStatsFilter.*", func(t *testing.T, s *suite) {
		p := s.pod(t)
		c := p.sh(t, burn)
		c.says(t, "ready\n")
		p.sh(t, "true").exited(t)
		for name, filter := range map[string]*runtimeapi.ContainerStatsFilter{
			"by sandbox": {PodSandboxId: p.id},
			"by id":      {Id: c.id},
			"by label":   {PodSandboxId: p.id, LabelSelector: map[string]string{runLabel: s.run}},
		} {
			r, err := s.Runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{Filter: filter})
			if err != nil {
				t.Fatal(err)
			}
			if list := r.GetStats(); len(list) != 1 || list[0].GetAttributes().GetId() != c.id {
				t.Errorf("%s: stats are %v", name, list)
			}
		}
	}},
	{"of a sandbox", "PodSandboxStats PodSandboxStatsRequest.* PodSandboxStatsResponse.stats " +
		"PodSandboxStats.{attributes,linux} PodSandboxAttributes.{id,metadata} " +
		"LinuxPodSandboxStats.{memory,containers}", func(t *testing.T, s *suite) {
		p := s.pod(t)
		c := p.sh(t, burn)
		c.says(t, "ready\n")
		var stats *runtimeapi.PodSandboxStats
		eventually(t, "its figures are there", func() bool {
			r, err := s.Runtime.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.id})
			if err != nil {
				t.Fatal(err)
			}
			stats = r.GetStats()
			return stats.GetLinux().GetMemory().GetWorkingSetBytes().GetValue() > 0 && len(stats.GetLinux().GetContainers()) == 1
		})
		if stats.GetAttributes().GetId() != p.id || stats.GetAttributes().GetMetadata().GetName() != p.config.GetMetadata().GetName() {
			t.Errorf("attributes are %v", stats.GetAttributes())
		}
	}},
	{"sandbox stats are implemented", "PodSandboxStats", func(t *testing.T, s *suite) {
		// So the kubelet asks, with an empty id.
		_, err := s.Runtime.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{})
		wantCode(t, "stats without an id", err, codes.NotFound, codes.InvalidArgument, codes.Unknown)
	}},
	{"image filesystem", "ImageFsInfo ImageFsInfoResponse.* FilesystemUsage.* " +
		"FilesystemIdentifier.mountpoint", func(t *testing.T, s *suite) {
		var list []*runtimeapi.FilesystemUsage
		eventually(t, "its usage is there", func() bool {
			r, err := s.Runtime.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
			if err != nil {
				t.Fatal(err)
			}
			list = r.GetImageFilesystems()
			return len(list) > 0 && list[0].GetUsedBytes().GetValue() > 0
		})
		if fs := list[0]; fs.GetTimestamp() == 0 || fs.GetInodesUsed() == nil {
			t.Errorf("image filesystem is %v", fs)
		}
		if _, err := os.Stat(list[0].GetFsId().GetMountpoint()); err != nil {
			t.Errorf("mount point: %v", err)
		}
	}},
}

// usesSomething tells whether stats are of the container and not zero.
func (c *container) usesSomething(t *testing.T, stats *runtimeapi.ContainerStats) bool {
	t.Helper()
	if a := stats.GetAttributes(); a.GetId() != c.id || a.GetLabels()[runLabel] != c.run {
		t.Fatalf("attributes are %v", a)
	}
	return stats.GetCpu().GetUsageCoreNanoSeconds().GetValue() > 0 &&
		stats.GetCpu().GetTimestamp() > 0 &&
		stats.GetMemory().GetWorkingSetBytes().GetValue() > 0 &&
		stats.GetWritableLayer().GetUsedBytes().GetValue() > 0
}
