// Package stats tells what the node and its pods use, in the kubelet's words
// (stats/v1alpha1, the body of /stats/summary): what the runtime says of pods and
// containers, what the kernel says of the node, and what volumes and logs take of
// the disk, which is measured once in a period. A volume that does not answer is
// left out, and nobody waits for it (claim.go).
package stats

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"podstead/agent/internal/eviction"
	"podstead/agent/internal/fsusage"
	"podstead/agent/internal/observe"
	"podstead/agent/internal/volume"
	"podstead/cgroup"
	"podstead/cri"
)

// Source is where the figures are from.
type Source struct {
	Runtime cri.Runtime
	Node    string // name
	Labels  map[string]string
	Pods    func() []*corev1.Pod
	// NodeFs is a path on the file system of pods' directories; Logs tells where a
	// container's logs on it are.
	NodeFs string
	Logs   func(pod *corev1.Pod, container string) string
	// Volumes tells where volumes can be measured, by pod UID and name; Measure what
	// one of these takes that are to be walked, and Ask how full the others are.
	Volumes func(ctx context.Context, pods []*corev1.Pod) map[string]map[string]volume.Place
	Measure func(ctx context.Context, pod *corev1.Pod, dir string) (eviction.Disk, error)
	Ask     func(ctx context.Context, at volume.Place) (fsusage.Usage, error)
	// Every is how old what is said of a pod's directories and volumes may be; 0: a
	// minute, less: volumes are not measured (the kubelet's volumeStatsAggPeriod).
	Every time.Duration
	Log   *slog.Logger
	// PodsCgroup is the parent of all pods; nil if the runtime keeps it.
	PodsCgroup *cgroup.Group
	// OwnCgroup is the agent's, SystemCgroup that of the machine's other programs;
	// nil if they have none.
	OwnCgroup, SystemCgroup *cgroup.Group

	mu    sync.Mutex
	last  sample // of the node's processors
	disks map[string]measured
	asked asked
}

// Summary tells of everything; with cpuAndMemory of these only, which costs less.
// Some figures may be missing from it when there is an error, too.
func (s *Source) Summary(ctx context.Context, cpuAndMemory bool) (*stats.Summary, error) {
	pods, err := s.pods(ctx, cpuAndMemory)
	out := &stats.Summary{Node: s.node(), Pods: pods}
	if cpuAndMemory {
		return out, err
	}
	out.Node.Fs, out.Node.Network, out.Node.Rlimit = fileSystem(s.NodeFs), nodeNetwork(), nodeProcesses()
	images, imagesErr := s.imageFs(ctx)
	out.Node.Runtime = &stats.RuntimeStats{ImageFs: images, ContainerFs: images}
	return out, errors.Join(err, imagesErr)
}

func (s *Source) imageFs(ctx context.Context) (*stats.FsStats, error) {
	info, err := s.Runtime.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		return nil, fmt.Errorf("file system of images: %w", err)
	}
	if len(info.ImageFilesystems) == 0 {
		return nil, nil
	}
	fs := fileSystem(info.ImageFilesystems[0].GetFsId().GetMountpoint())
	if fs != nil {
		fs.UsedBytes = value(info.ImageFilesystems[0].UsedBytes)
		fs.InodesUsed = value(info.ImageFilesystems[0].InodesUsed)
	}
	return fs, nil
}

// pods joins what the runtime says with the pods of this node.
func (s *Source) pods(ctx context.Context, cpuAndMemory bool) ([]stats.PodStats, error) {
	sandboxes, err := s.sandboxes(ctx)
	if err != nil {
		return nil, fmt.Errorf("statistics of pods: %w", err)
	}
	started := s.started(ctx)
	out := []stats.PodStats{}
	known := map[string]bool{}
	pods := s.Pods()
	var volumes volumes
	if !cpuAndMemory {
		volumes = s.volumes(ctx, pods)
	}
	for _, pod := range pods {
		known[string(pod.UID)] = true
		sandbox := sandboxes[string(pod.UID)]
		if sandbox == nil {
			continue
		}
		one := s.pod(pod, sandbox, started, cpuAndMemory)
		if !cpuAndMemory {
			s.addDisk(ctx, pod, volumes, &one)
		}
		out = append(out, one)
	}
	s.forget(known)
	return out, nil
}

// sandboxes are the statistics by pod UID. A runtime that has none of sandboxes
// has those of containers.
func (s *Source) sandboxes(ctx context.Context) (map[string]*runtimeapi.PodSandboxStats, error) {
	out := map[string]*runtimeapi.PodSandboxStats{}
	list, err := s.Runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{
		Filter: &runtimeapi.PodSandboxStatsFilter{LabelSelector: s.Labels}})
	if err == nil {
		for _, p := range list.Stats {
			out[p.GetAttributes().GetLabels()[observe.LabelPodUID]] = p
		}
		return out, nil
	}
	if cri.Code(err) != codes.Unimplemented {
		return nil, err
	}
	containers, err := s.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{
		Filter: &runtimeapi.ContainerStatsFilter{LabelSelector: s.Labels}})
	if err != nil {
		return nil, err
	}
	for _, c := range containers.Stats {
		uid := c.GetAttributes().GetLabels()[observe.LabelPodUID]
		if out[uid] == nil {
			out[uid] = &runtimeapi.PodSandboxStats{Linux: &runtimeapi.LinuxPodSandboxStats{}}
		}
		out[uid].Linux.Containers = append(out[uid].Linux.Containers, c)
	}
	for _, p := range out {
		p.Linux.Cpu, p.Linux.Memory = total(p.Linux.Containers)
	}
	return out, nil
}

// total adds up what containers use.
func total(list []*runtimeapi.ContainerStats) (*runtimeapi.CpuUsage, *runtimeapi.MemoryUsage) {
	cpu := &runtimeapi.CpuUsage{UsageCoreNanoSeconds: &runtimeapi.UInt64Value{}}
	memory := &runtimeapi.MemoryUsage{WorkingSetBytes: &runtimeapi.UInt64Value{}}
	for _, c := range list {
		cpu.Timestamp = max(cpu.Timestamp, c.GetCpu().GetTimestamp())
		cpu.UsageCoreNanoSeconds.Value += c.GetCpu().GetUsageCoreNanoSeconds().GetValue()
		memory.Timestamp = max(memory.Timestamp, c.GetMemory().GetTimestamp())
		memory.WorkingSetBytes.Value += c.GetMemory().GetWorkingSetBytes().GetValue()
	}
	return cpu, memory
}

// started are the times at which containers were created, by ID. Without them
// the statuses of pods tell.
func (s *Source) started(ctx context.Context) map[string]time.Time {
	out := map[string]time.Time{}
	list, err := s.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{
		Filter: &runtimeapi.ContainerFilter{LabelSelector: s.Labels}})
	if err == nil {
		for _, c := range list.Containers {
			out[c.Id] = time.Unix(0, c.CreatedAt)
		}
	}
	return out
}

func (s *Source) pod(pod *corev1.Pod, from *runtimeapi.PodSandboxStats, started map[string]time.Time, cpuAndMemory bool) stats.PodStats {
	l := from.GetLinux()
	out := stats.PodStats{
		PodRef: stats.PodReference{Name: pod.Name, Namespace: pod.Namespace, UID: string(pod.UID)},
		CPU:    cpu(l.GetCpu()), Memory: memory(l.GetMemory()), Containers: []stats.ContainerStats{},
	}
	if pod.Status.StartTime != nil {
		out.StartTime = *pod.Status.StartTime
	}
	swap := uint64(0)
	for _, c := range l.GetContainers() {
		one := stats.ContainerStats{
			Name: c.GetAttributes().GetMetadata().GetName(), StartTime: metav1.NewTime(started[c.GetAttributes().GetId()]),
			CPU: cpu(c.GetCpu()), Memory: memory(c.GetMemory()), IO: io(c.GetIo()), Swap: swapOf(c.GetSwap()),
		}
		if one.Swap != nil && one.Swap.SwapUsageBytes != nil {
			swap += *one.Swap.SwapUsageBytes
			out.Swap = &stats.SwapStats{Time: one.Swap.Time, SwapUsageBytes: &swap}
		}
		if used := c.GetWritableLayer(); used != nil && !cpuAndMemory {
			one.Rootfs = fileSystem(used.GetFsId().GetMountpoint())
			if one.Rootfs != nil {
				one.Rootfs.UsedBytes, one.Rootfs.InodesUsed = value(used.UsedBytes), value(used.InodesUsed)
			}
		}
		out.Containers = append(out.Containers, one)
	}
	slices.SortFunc(out.Containers, func(a, b stats.ContainerStats) int { return cmp.Compare(a.Name, b.Name) })
	if cpuAndMemory {
		return out
	}
	out.IO, out.Network = io(l.GetIo()), network(l.GetNetwork())
	if n := l.GetProcess().GetProcessCount(); n != nil {
		out.ProcessStats = &stats.ProcessStats{ProcessCount: &n.Value}
	}
	return out
}

func value(v *runtimeapi.UInt64Value) *uint64 {
	if v == nil {
		return nil
	}
	return &v.Value
}

// at is a time as runtimes tell it; 0 is unknown.
func at(nanoseconds int64) (t metav1.Time) {
	if nanoseconds != 0 {
		t = metav1.NewTime(time.Unix(0, nanoseconds))
	}
	return t
}

func cpu(c *runtimeapi.CpuUsage) *stats.CPUStats {
	if c == nil {
		return nil
	}
	return &stats.CPUStats{Time: at(c.Timestamp), UsageNanoCores: value(c.UsageNanoCores),
		UsageCoreNanoSeconds: value(c.UsageCoreNanoSeconds), PSI: psi(c.Psi)}
}

func memory(m *runtimeapi.MemoryUsage) *stats.MemoryStats {
	if m == nil {
		return nil
	}
	return &stats.MemoryStats{Time: at(m.Timestamp), AvailableBytes: value(m.AvailableBytes), UsageBytes: value(m.UsageBytes),
		WorkingSetBytes: value(m.WorkingSetBytes), RSSBytes: value(m.RssBytes), PageFaults: value(m.PageFaults),
		MajorPageFaults: value(m.MajorPageFaults), PSI: psi(m.Psi)}
}

func io(i *runtimeapi.IoUsage) *stats.IOStats {
	if i == nil {
		return nil
	}
	return &stats.IOStats{Time: at(i.Timestamp), PSI: psi(i.Psi)}
}

func psi(p *runtimeapi.PsiStats) *stats.PSIStats {
	if p == nil {
		return nil
	}
	data := func(d *runtimeapi.PsiData) stats.PSIData {
		return stats.PSIData{Total: d.GetTotal(), Avg10: d.GetAvg10(), Avg60: d.GetAvg60(), Avg300: d.GetAvg300()}
	}
	return &stats.PSIStats{Full: data(p.Full), Some: data(p.Some)}
}

func swapOf(s *runtimeapi.SwapUsage) *stats.SwapStats {
	if s == nil {
		return nil
	}
	return &stats.SwapStats{Time: at(s.Timestamp), SwapAvailableBytes: value(s.SwapAvailableBytes), SwapUsageBytes: value(s.SwapUsageBytes)}
}

func network(n *runtimeapi.NetworkUsage) *stats.NetworkStats {
	if n == nil {
		return nil
	}
	link := func(i *runtimeapi.NetworkInterfaceUsage) stats.InterfaceStats {
		return stats.InterfaceStats{Name: i.GetName(), RxBytes: value(i.GetRxBytes()), RxErrors: value(i.GetRxErrors()),
			TxBytes: value(i.GetTxBytes()), TxErrors: value(i.GetTxErrors())}
	}
	out := &stats.NetworkStats{Time: at(n.Timestamp), InterfaceStats: link(n.DefaultInterface)}
	if n.DefaultInterface != nil {
		out.Interfaces = append(out.Interfaces, out.InterfaceStats)
	}
	for _, i := range n.Interfaces {
		out.Interfaces = append(out.Interfaces, link(i))
	}
	return out
}
