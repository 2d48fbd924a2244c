package docker

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cgroup"
	"podstead/cri"
	"podstead/sys"
)

// ContainerStats tells what a container uses.
func (r *Runtime) ContainerStats(ctx context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := r.mustCtr(ctx, req.ContainerId)
	if err != nil {
		return nil, err
	}
	st, err := r.ctrStats(ctx, c)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: st}, nil
}

// ListContainerStats tells it of all running containers that pass the filters.
func (r *Runtime) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	f := req.GetFilter()
	all, err := r.runningStats(ctx, "", func(c *ctr) bool {
		return strings.HasPrefix(c.id, f.GetId()) && strings.HasPrefix(c.rec.SandboxID, f.GetPodSandboxId()) &&
			selects(f.GetLabelSelector(), c.rec.config().GetLabels())
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListContainerStatsResponse{Stats: all}, nil
}

// runningStats collects what it can: a container that ends meanwhile is left
// out.
func (r *Runtime) runningStats(ctx context.Context, sandboxID string, wanted func(*ctr) bool) ([]*runtimeapi.ContainerStats, error) {
	all, err := r.ctrs(ctx, sandboxID)
	if err != nil {
		return nil, err
	}
	var out []*runtimeapi.ContainerStats
	for _, c := range all {
		if !c.state.Running || !wanted(c) {
			continue
		}
		seen, err := r.ctr(ctx, c.id)
		if err != nil || seen == nil || !seen.state.Running {
			continue
		}
		if st, err := r.ctrStats(ctx, seen); err == nil {
			out = append(out, st)
		}
	}
	return out, nil
}

func (r *Runtime) ctrStats(ctx context.Context, c *ctr) (*runtimeapi.ContainerStats, error) {
	cfg := c.rec.config()
	st := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{
		Id: c.id, Metadata: proto.CloneOf(cfg.Metadata),
		Labels: maps.Clone(cfg.Labels), Annotations: maps.Clone(cfg.Annotations),
	}}
	st.WritableLayer = r.writableLayer(ctx, c.id)
	g, err := r.groupOf(c.state.Pid)
	if err != nil || g == nil {
		return st, err // nil: nothing runs any more, only the disk is used
	}
	s, err := g.Stats()
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.id, err)
	}
	st.Cpu, st.Memory, st.Swap = r.samples.cpu(c.id, s), memoryUsage(s), swapUsage(s)
	return st, nil
}

// PodSandboxStats tells what a pod uses as a whole.
func (r *Runtime) PodSandboxStats(ctx context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	if req.PodSandboxId == "" {
		// The kubelet asks so whether the call is implemented.
		return nil, cri.Errorf(codes.NotFound, "pod sandbox %q does not exist", "")
	}
	p, err := r.mustPod(ctx, req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	st, err := r.podStats(ctx, p)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: st}, nil
}

// ListPodSandboxStats tells it of all ready sandboxes that pass the filters.
func (r *Runtime) ListPodSandboxStats(ctx context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	f := req.GetFilter()
	all, err := r.pods(ctx)
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ListPodSandboxStatsResponse{}
	for _, p := range all {
		if !r.ready(p) || !strings.HasPrefix(p.id, f.GetId()) || !selects(f.GetLabelSelector(), p.rec.config().GetLabels()) {
			continue
		}
		seen, err := r.pod(ctx, p.id)
		if err != nil || seen == nil {
			continue
		}
		st, err := r.podStats(ctx, seen)
		if err != nil {
			return nil, err
		}
		resp.Stats = append(resp.Stats, st)
	}
	return resp, nil
}

func (r *Runtime) podStats(ctx context.Context, p *pod) (*runtimeapi.PodSandboxStats, error) {
	cfg := p.rec.config()
	l := &runtimeapi.LinuxPodSandboxStats{}
	var err error
	if l.Containers, err = r.runningStats(ctx, p.id, func(*ctr) bool { return true }); err != nil {
		return nil, err
	}
	// The pod's group holds that of its pause process. A pod without one of
	// its own is the sum of its containers, which the kubelet makes itself.
	if g, err := r.groupOf(p.state.Pid); err == nil && g != nil && cfg.GetLinux().GetCgroupParent() != "" {
		if s, err := r.cfg.Cgroups.Group(filepath.Dir(g.Path())).Stats(); err == nil {
			l.Cpu, l.Memory = r.samples.cpu(p.id, s), memoryUsage(s)
			l.Process = &runtimeapi.ProcessUsage{Timestamp: s.Time.UnixNano(), ProcessCount: value(s.Pids)}
		}
	}
	if netns := p.netns(); netns != "" {
		l.Network, _ = networkUsage(netns) // gone with the namespace
	}
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id: p.id, Metadata: proto.CloneOf(cfg.Metadata),
			Labels: maps.Clone(cfg.Labels), Annotations: maps.Clone(cfg.Annotations),
		},
		Linux: l,
	}, nil
}

// groupOf finds a process's cgroup, whatever driver Docker has; nil if the
// process is gone.
func (r *Runtime) groupOf(pid int) (*cgroup.Group, error) {
	if pid == 0 {
		return nil, nil
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		if os.IsNotExist(err) {
			return nil, nil
		}
		return nil, err
	}
	path := ""
	for line := range strings.Lines(string(b)) {
		// NUMBER:CONTROLLERS:PATH
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		if f[1] == "memory" || f[1] == "" && path == "" {
			path = f[2]
		}
	}
	if path == "" || path == "/" {
		return nil, fmt.Errorf("process %d: its cgroup is unknown", pid)
	}
	return r.cfg.Cgroups.Group(path), nil
}

// samples remembers what was measured before, to compute rates. The zero value
// is ready.
type samples struct {
	mu   sync.Mutex
	byID map[string]*sample
}

type sample struct {
	at          time.Time
	nanos, rate uint64
}

// minSample is the shortest time that a rate is computed over.
const minSample = 100 * time.Millisecond

func (s *samples) cpu(id string, now cgroup.Stats) *runtimeapi.CpuUsage {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID == nil {
		s.byID = map[string]*sample{}
	}
	old := s.byID[id]
	if old == nil {
		old = &sample{}
		s.byID[id] = old
	}
	if dt := now.Time.Sub(old.at); dt >= minSample {
		if !old.at.IsZero() && now.CPUNanoseconds >= old.nanos {
			old.rate = uint64(float64(now.CPUNanoseconds-old.nanos) / dt.Seconds())
		}
		old.at, old.nanos = now.Time, now.CPUNanoseconds
	}
	return &runtimeapi.CpuUsage{
		Timestamp: now.Time.UnixNano(), UsageCoreNanoSeconds: value(now.CPUNanoseconds), UsageNanoCores: value(old.rate),
	}
}

func (s *samples) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byID, id)
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

// diskAge is for how long what Docker counted on the disk is not counted again.
const diskAge = 30 * time.Second

// diskUsage remembers what takes Docker long to count. The zero value is ready.
type diskUsage struct {
	mu     sync.Mutex
	layers map[string]measured // writable layers, by container
	images measured
}

type measured struct {
	at    time.Time
	bytes uint64
}

// writableLayer is how much a container wrote. Docker walks its files for that.
func (r *Runtime) writableLayer(ctx context.Context, id string) *runtimeapi.FilesystemUsage {
	d := &r.disk
	d.mu.Lock()
	m := d.layers[id]
	d.mu.Unlock()
	if time.Since(m.at) > diskAge {
		res, err := r.api.ContainerInspect(ctx, id, client.ContainerInspectOptions{Size: true})
		if err != nil || res.Container.SizeRw == nil {
			return nil
		}
		m = measured{time.Now(), uint64(max(*res.Container.SizeRw, 0))}
		d.mu.Lock()
		if d.layers == nil {
			d.layers = map[string]measured{}
		}
		for old, o := range d.layers { // of containers that nobody asks for any more
			if time.Since(o.at) > 10*diskAge {
				delete(d.layers, old)
			}
		}
		d.layers[id] = m
		d.mu.Unlock()
	}
	return &runtimeapi.FilesystemUsage{
		Timestamp: m.at.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: r.info.DockerRootDir},
		UsedBytes: value(m.bytes),
	}
}

// ImageFsInfo tells where images and writable layers are, and how much images
// take by Docker's own account. Docker does not count files: their number is
// that of the whole file system.
func (r *Runtime) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	_, err := r.join(ctx, "image file system", createTimeout, func(ctx context.Context) (string, error) {
		return "", r.measureImages(ctx)
	})
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(r.info.DockerRootDir, &st); err != nil {
		return nil, fmt.Errorf("file system of %s: %w", r.info.DockerRootDir, err)
	}
	r.disk.mu.Lock()
	m := r.disk.images
	r.disk.mu.Unlock()
	fs := func() []*runtimeapi.FilesystemUsage {
		return []*runtimeapi.FilesystemUsage{{
			Timestamp: m.at.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: r.info.DockerRootDir},
			UsedBytes: value(m.bytes), InodesUsed: value(st.Files - st.Ffree),
		}}
	}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: fs(), ContainerFilesystems: fs()}, nil
}

func (r *Runtime) measureImages(ctx context.Context) error {
	r.disk.mu.Lock()
	m := r.disk.images
	r.disk.mu.Unlock()
	if time.Since(m.at) < diskAge {
		return nil
	}
	usage, err := r.api.DiskUsage(ctx, client.DiskUsageOptions{Images: true})
	if err != nil {
		return failed(err, "disk usage of images")
	}
	r.disk.mu.Lock()
	defer r.disk.mu.Unlock()
	r.disk.images = measured{time.Now(), uint64(max(usage.Images.TotalSize, 0))}
	return nil
}
