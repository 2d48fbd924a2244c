package stats

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/eviction"
	"podstead/agent/internal/observe"
	"podstead/agent/internal/pressure"
	"podstead/agent/internal/volume"
	"podstead/cgroup"
	"podstead/cri"
)

// old is a runtime without statistics of sandboxes.
type old struct {
	cri.Runtime
	containers []*runtimeapi.ContainerStats
}

func (o old) ListPodSandboxStats(context.Context, *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return nil, cri.Errorf(codes.Unimplemented, "no")
}

func (o old) ListContainerStats(context.Context, *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	return &runtimeapi.ListContainerStatsResponse{Stats: o.containers}, nil
}

func (o old) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{}, nil
}

func (o old) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{}, nil
}

func one(uid, name string, cpu, memory uint64) *runtimeapi.ContainerStats {
	return &runtimeapi.ContainerStats{
		Attributes:    &runtimeapi.ContainerAttributes{Id: name, Metadata: &runtimeapi.ContainerMetadata{Name: name}, Labels: map[string]string{observe.LabelPodUID: uid}},
		Cpu:           &runtimeapi.CpuUsage{Timestamp: 1, UsageCoreNanoSeconds: &runtimeapi.UInt64Value{Value: cpu}},
		Memory:        &runtimeapi.MemoryUsage{Timestamp: 1, WorkingSetBytes: &runtimeapi.UInt64Value{Value: memory}},
		WritableLayer: &runtimeapi.FilesystemUsage{FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/"}, UsedBytes: &runtimeapi.UInt64Value{Value: 1 << 20}},
	}
}

// TestOnAnOldRuntime adds containers up to pods, and what they have on disk.
func TestOnAnOldRuntime(t *testing.T) {
	dir := t.TempDir()
	for name, size := range map[string]int{"logs": 10000, "scratch": 100000} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "f"), make([]byte, size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u1"},
		Spec:   corev1.PodSpec{Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}, {Name: "other"}}},
		Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "a"}}}}
	waits := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "waits", UID: "u2"}}
	s := &Source{
		Runtime: old{containers: []*runtimeapi.ContainerStats{one("u1", "b", 5, 50), one("u1", "a", 7, 70), one("stranger", "x", 1, 1)}},
		Node:    "n1", NodeFs: dir, Pods: func() []*corev1.Pod { return []*corev1.Pod{pod, waits} },
		Logs: func(*corev1.Pod, string) string { return filepath.Join(dir, "logs") },
		Volumes: func(context.Context, []*corev1.Pod) map[string]map[string]volume.Place {
			return map[string]map[string]volume.Place{"u1": {"v": {Path: filepath.Join(dir, "scratch"), Walked: true}}}
		},
		Measure: func(ctx context.Context, _ *corev1.Pod, dir string) (eviction.Disk, error) {
			return pressure.Measure(ctx, dir)
		},
	}
	sum, err := s.Summary(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	if len(sum.Pods) != 1 {
		t.Fatalf("%d pods", len(sum.Pods))
	}
	p := sum.Pods[0]
	if p.PodRef.UID != "u1" || *p.CPU.UsageCoreNanoSeconds != 12 || *p.Memory.WorkingSetBytes != 120 {
		t.Errorf("pod: %+v, %+v, %+v", p.PodRef, p.CPU, p.Memory)
	}
	if len(p.Containers) != 2 || p.Containers[0].Name != "a" || *p.Containers[0].Rootfs.UsedBytes != 1<<20 {
		t.Errorf("containers: %+v", p.Containers)
	}
	if len(p.VolumeStats) != 1 || p.VolumeStats[0].Name != "v" || *p.VolumeStats[0].UsedBytes < 100000 {
		t.Errorf("volumes: %+v", p.VolumeStats)
	}
	if logs := p.Containers[0].Logs; logs == nil || *logs.UsedBytes < 10000 {
		t.Errorf("logs: %+v", logs)
	}
	if *p.EphemeralStorage.UsedBytes < 2<<20+110000 {
		t.Errorf("disk: %d", *p.EphemeralStorage.UsedBytes)
	}
	if err := os.RemoveAll(filepath.Join(dir, "scratch")); err != nil {
		t.Fatal(err)
	}
	if sum, err = s.Summary(t.Context(), false); err != nil || *sum.Pods[0].EphemeralStorage.UsedBytes < 2<<20+110000 {
		t.Errorf("directories are measured at each request: %v", err)
	}
	s.Pods = func() []*corev1.Pod { return nil }
	s.Every = -1
	if _, err := s.Summary(t.Context(), false); err != nil || len(s.disks) != 0 {
		t.Errorf("what was measured of pods that are gone is kept: %v, %v", s.disks, err)
	}
}

func TestNode(t *testing.T) {
	s := &Source{Runtime: old{}, Node: "n1", NodeFs: "/", Pods: func() []*corev1.Pod { return nil }, Every: -1}
	sum, err := s.Summary(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	n := sum.Node
	if n.NodeName != "n1" || n.StartTime.IsZero() || *n.CPU.UsageCoreNanoSeconds == 0 || *n.Memory.WorkingSetBytes == 0 ||
		*n.Memory.PageFaults == 0 || *n.Fs.CapacityBytes == 0 || *n.Rlimit.MaxPID == 0 || *n.Rlimit.NumOfRunningProcesses == 0 {
		t.Errorf("%+v", n)
	}
	if *n.Memory.WorkingSetBytes+*n.Memory.AvailableBytes < *n.Memory.UsageBytes {
		t.Errorf("memory: %+v", n.Memory)
	}
	if n.CPU.UsageNanoCores != nil {
		t.Error("a rate without a sample before")
	}
	if len(n.SystemContainers) != 1 || n.SystemContainers[0].Name != "kubelet" || *n.SystemContainers[0].Memory.RSSBytes == 0 {
		t.Errorf("%+v", n.SystemContainers)
	}
}

func TestRate(t *testing.T) {
	s, at := &Source{}, time.Unix(100, 0)
	for _, c := range []struct {
		after time.Duration
		used  uint64
		want  uint64 // 0: none
	}{{0, 1000, 0}, {500 * time.Millisecond, 1500, 0}, {2 * time.Second, 5000, 2000}, {2100 * time.Millisecond, 9000, 2000}, {4 * time.Second, 5000, 0}} {
		got := s.rate(at.Add(c.after), c.used)
		if (got == nil && c.want != 0) || (got != nil && *got != c.want) {
			t.Errorf("after %v: %v, want %d", c.after, got, c.want)
		}
	}
}

// TestSystemGroups: the agent's group and that of other programs are told of by
// the names that dashboards know.
func TestSystemGroups(t *testing.T) {
	h, err := cgroup.Detect()
	if err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and cgroups: ", err)
	}
	top := h.Group("/podstead-test-" + strconv.Itoa(os.Getpid()))
	own, rest := top.Child("own"), top.Child("rest")
	t.Cleanup(func() {
		if err := top.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	for _, g := range []*cgroup.Group{own, rest} {
		if err := g.Create(); err != nil {
			t.Skip("no groups can be made here: ", err)
		}
	}
	s := &Source{Runtime: old{}, Node: "n1", NodeFs: "/", Pods: func() []*corev1.Pod { return nil }, Every: -1, OwnCgroup: own, SystemCgroup: rest}
	sum, err := s.Summary(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range sum.Node.SystemContainers {
		names = append(names, c.Name)
		if c.CPU == nil || c.Memory == nil || *c.Memory.WorkingSetBytes != 0 { // nobody is in them
			t.Errorf("%s: %+v", c.Name, c)
		}
	}
	if !slices.Equal(names, []string{"kubelet", "misc"}) {
		t.Errorf("it tells of %v", names)
	}
}
