package engine

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cgroup"
	"podstead/cri"
	"podstead/sys"
)

// ContainerStats tells what a running container uses.
func (e *Engine) ContainerStats(_ context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := e.mustContainer(req.ContainerId)
	if err != nil {
		return nil, err
	}
	st, err := e.containerStats(c)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: st}, nil
}

// ListContainerStats tells it of all running containers that pass the filters.
func (e *Engine) ListContainerStats(_ context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	f := req.GetFilter()
	return &runtimeapi.ListContainerStatsResponse{Stats: e.runningStats(func(r *containerRecord) bool {
		return strings.HasPrefix(r.ID, f.GetId()) && strings.HasPrefix(r.SandboxID, f.GetPodSandboxId()) &&
			selects(f.GetLabelSelector(), r.config().GetLabels())
	})}, nil
}

// runningStats collects what it can: a container that ends meanwhile is left
// out.
func (e *Engine) runningStats(wanted func(*containerRecord) bool) []*runtimeapi.ContainerStats {
	var all []*runtimeapi.ContainerStats
	for _, c := range e.allContainers() {
		rec := c.record()
		if rec.Phase != containerRunning || !wanted(&rec) {
			continue
		}
		if st, err := e.containerStats(c); err == nil {
			all = append(all, st)
		}
	}
	slices.SortFunc(all, func(a, b *runtimeapi.ContainerStats) int { return strings.Compare(a.Attributes.Id, b.Attributes.Id) })
	return all
}

func (e *Engine) containerStats(c *container) (*runtimeapi.ContainerStats, error) {
	rec := c.record()
	st := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{
		Id: c.id, Metadata: proto.CloneOf(rec.config().Metadata),
		Labels: maps.Clone(rec.config().GetLabels()), Annotations: maps.Clone(rec.config().GetAnnotations()),
	}}
	st.WritableLayer = c.usage.disk(e.containerFile(c.id, "upper"), filepath.Join(e.cfg.StateDir, "containers"))
	g := e.cfg.Cgroups.Group(rec.Cgroup)
	s, err := g.Stats()
	if err != nil {
		if rec.Phase == containerRunning {
			return nil, err
		}
		return st, nil // nothing runs any more: only the disk is used
	}
	st.Cpu, st.Memory, st.Swap = c.usage.cpu(s), memoryUsage(s), swapUsage(s)
	st.Io = pressures(g, st.Cpu, st.Memory)
	return st, nil
}

// PodSandboxStats tells what a pod uses as a whole.
func (e *Engine) PodSandboxStats(_ context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	if req.PodSandboxId == "" {
		// The kubelet asks so whether the call is implemented.
		return nil, cri.Errorf(codes.NotFound, "pod sandbox %q does not exist", "")
	}
	s, err := e.mustSandbox(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: e.sandboxStats(s)}, nil
}

// ListPodSandboxStats tells it of all ready sandboxes that pass the filters.
func (e *Engine) ListPodSandboxStats(_ context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	f := req.GetFilter()
	resp := &runtimeapi.ListPodSandboxStatsResponse{}
	for _, s := range e.allSandboxes() {
		rec := s.record()
		if rec.Phase == sandboxReady && strings.HasPrefix(s.id, f.GetId()) && selects(f.GetLabelSelector(), rec.config().GetLabels()) {
			resp.Stats = append(resp.Stats, e.sandboxStats(s))
		}
	}
	return resp, nil
}

// sandboxStats adds up the containers unless the pod has a cgroup of its own.
func (e *Engine) sandboxStats(s *sandbox) *runtimeapi.PodSandboxStats {
	rec := s.record()
	l := &runtimeapi.LinuxPodSandboxStats{
		Containers: e.runningStats(func(r *containerRecord) bool { return r.SandboxID == s.id }),
	}
	g := e.cfg.Cgroups.Group(rec.CgroupParent)
	if st, err := g.Stats(); err == nil {
		l.Cpu, l.Memory = s.usage.cpu(st), memoryUsage(st)
		l.Process = &runtimeapi.ProcessUsage{Timestamp: st.Time.UnixNano(), ProcessCount: value(st.Pids)}
		l.Io = pressures(g, l.Cpu, l.Memory)
	}
	if netns := e.netnsPath(&rec); netns != "" {
		l.Network, _ = networkUsage(netns) // gone with the namespace
	}
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id: s.id, Metadata: proto.CloneOf(rec.config().Metadata),
			Labels: maps.Clone(rec.config().GetLabels()), Annotations: maps.Clone(rec.config().GetAnnotations()),
		},
		Linux: l,
	}
}

// minSample is the shortest time that a rate is computed over.
const minSample = 100 * time.Millisecond

// diskAge is for how long the size of a writable layer is not counted again.
const diskAge = 30 * time.Second

// maxDiskEntries bounds the count of a writable layer's files; beyond it the
// size is that of the files seen.
const maxDiskEntries = 200_000

// usage remembers samples, to compute rates and not to walk trees too often.
// The zero value is ready.
type usage struct {
	mu        sync.Mutex
	at        time.Time
	nanos     uint64
	rate      uint64
	diskAt    time.Time
	diskBytes uint64
	diskFiles uint64
}

func (u *usage) cpu(s cgroup.Stats) *runtimeapi.CpuUsage {
	u.mu.Lock()
	defer u.mu.Unlock()
	if dt := s.Time.Sub(u.at); dt >= minSample {
		if !u.at.IsZero() && s.CPUNanoseconds >= u.nanos {
			u.rate = uint64(float64(s.CPUNanoseconds-u.nanos) / dt.Seconds())
		}
		u.at, u.nanos = s.Time, s.CPUNanoseconds
	}
	return &runtimeapi.CpuUsage{
		Timestamp: s.Time.UnixNano(), UsageCoreNanoSeconds: value(s.CPUNanoseconds), UsageNanoCores: value(u.rate),
	}
}

func memoryUsage(s cgroup.Stats) *runtimeapi.MemoryUsage {
	m := &runtimeapi.MemoryUsage{
		Timestamp: s.Time.UnixNano(), WorkingSetBytes: value(s.WorkingSetBytes), UsageBytes: value(s.MemoryBytes),
		RssBytes: value(s.RSSBytes), PageFaults: value(s.PageFaults), MajorPageFaults: value(s.MajorPageFaults),
		AvailableBytes: value(0),
	}
	if s.MemoryLimitBytes > s.WorkingSetBytes {
		m.AvailableBytes = value(s.MemoryLimitBytes - s.WorkingSetBytes)
	}
	return m
}

func swapUsage(s cgroup.Stats) *runtimeapi.SwapUsage {
	u := &runtimeapi.SwapUsage{Timestamp: s.Time.UnixNano(), SwapUsageBytes: value(s.SwapBytes), SwapAvailableBytes: value(0)}
	if s.SwapLimitBytes != cgroup.Unlimited && s.SwapLimitBytes > s.SwapBytes {
		u.SwapAvailableBytes = value(s.SwapLimitBytes - s.SwapBytes)
	}
	return u
}

// pressures adds what the kernel measures of stalls: cgroup v2 only. It returns
// those of I/O, nil if there are none.
func pressures(g *cgroup.Group, cpu *runtimeapi.CpuUsage, memory *runtimeapi.MemoryUsage) *runtimeapi.IoUsage {
	cpu.Psi, memory.Psi = psi(g, "cpu"), psi(g, "memory")
	io := psi(g, "io")
	if io == nil {
		return nil
	}
	return &runtimeapi.IoUsage{Timestamp: time.Now().UnixNano(), Psi: io}
}

func psi(g *cgroup.Group, resource string) *runtimeapi.PsiStats {
	p, err := g.Pressure(resource)
	if err != nil || p == nil {
		return nil
	}
	data := func(s cgroup.PressureShare) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: uint64(s.Total), Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &runtimeapi.PsiStats{Some: data(p.Some), Full: data(p.Full)}
}

// disk counts what a container wrote. The tree holds its changes only.
func (u *usage) disk(dir, mountpoint string) *runtimeapi.FilesystemUsage {
	u.mu.Lock()
	defer u.mu.Unlock()
	if time.Since(u.diskAt) > diskAge {
		u.diskBytes, u.diskFiles = countTree(dir)
		u.diskAt = time.Now()
	}
	return &runtimeapi.FilesystemUsage{
		Timestamp: u.diskAt.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: mountpoint},
		UsedBytes: value(u.diskBytes), InodesUsed: value(u.diskFiles),
	}
}

var errEnough = errors.New("enough")

func countTree(dir string) (bytes, files uint64) {
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				bytes += uint64(st.Blocks) * 512
			}
		}
		if files++; files >= maxDiskEntries {
			return errEnough
		}
		return nil
	})
	return bytes, files
}

// networkUsage reads the interfaces' counters inside a network namespace.
func networkUsage(netns string) (*runtimeapi.NetworkUsage, error) {
	var table []byte
	err := sys.InNetNamespace(netns, func() (err error) {
		table, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	})
	if err != nil {
		return nil, err
	}
	u := &runtimeapi.NetworkUsage{Timestamp: time.Now().UnixNano()}
	for line := range strings.Lines(string(table)) {
		name, counters, ok := strings.Cut(line, ":")
		f := strings.Fields(counters)
		if name = strings.TrimSpace(name); !ok || name == "lo" || len(f) < 16 {
			continue
		}
		n := func(i int) *runtimeapi.UInt64Value {
			v, _ := strconv.ParseUint(f[i], 10, 64)
			return value(v)
		}
		i := &runtimeapi.NetworkInterfaceUsage{Name: name, RxBytes: n(0), RxErrors: n(2), TxBytes: n(8), TxErrors: n(10)}
		u.Interfaces = append(u.Interfaces, i)
		if u.DefaultInterface == nil || name == "eth0" {
			u.DefaultInterface = i
		}
	}
	return u, nil
}

func value(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }
