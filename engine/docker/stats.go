package docker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cgroup"
	"podstead/cri"
	"podstead/engine/internal/disk"
	"podstead/engine/internal/figure"
	"podstead/engine/internal/netdev"
	"podstead/engine/internal/pod"
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
			pod.Selects(f.GetLabelSelector(), c.rec.config().GetLabels())
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

// ctrStats reads what a container that was inspected uses.
func (r *Runtime) ctrStats(ctx context.Context, c *ctr) (*runtimeapi.ContainerStats, error) {
	cfg := c.rec.config()
	st := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{
		Id: c.id, Metadata: proto.CloneOf(cfg.Metadata),
		Labels: maps.Clone(cfg.Labels), Annotations: maps.Clone(cfg.Annotations),
	}}
	g, err := r.groupOf(c.state.Pid)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.id, err)
	}
	activity := activityOver
	if g != nil { // else nothing runs any more, only the disk is used
		s, err := g.Stats()
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", c.id, err)
		}
		started := time.Unix(0, nanoseconds(c.state.StartedAt))
		st.Cpu, st.Memory, st.Swap = r.gauges.of(c.id).cpu.Usage(s, started), figure.Memory(s), figure.Swap(s)
		if st.Io, err = figure.AddPressures(g, st.Cpu, st.Memory); err != nil {
			return nil, fmt.Errorf("container %s: %w", c.id, err)
		}
		activity = s.CPUNanoseconds
	}
	st.WritableLayer = r.writableLayer(ctx, c, activity)
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
		if !r.ready(p) || !strings.HasPrefix(p.id, f.GetId()) || !pod.Selects(f.GetLabelSelector(), p.rec.config().GetLabels()) {
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

func (r *Runtime) podStats(ctx context.Context, p *sandbox) (*runtimeapi.PodSandboxStats, error) {
	cfg := p.rec.config()
	l := &runtimeapi.LinuxPodSandboxStats{}
	var err error
	if l.Containers, err = r.runningStats(ctx, p.id, func(*ctr) bool { return true }); err != nil {
		return nil, err
	}
	if g := r.groupOfPod(p); g != nil {
		if s, err := g.Stats(); err == nil {
			l.Cpu, l.Memory = r.gauges.of(p.id).cpu.Usage(s, time.Time{}), figure.Memory(s)
			l.Io, _ = figure.AddPressures(g, l.Cpu, l.Memory)
			if pids, err := g.Procs(); err == nil {
				pids = slices.DeleteFunc(pids, func(pid int) bool { return pid == p.state.Pid }) // ours, not the pod's
				l.Process = &runtimeapi.ProcessUsage{Timestamp: s.Time.UnixNano(), ProcessCount: figure.Value(uint64(len(pids)))}
			}
		}
	}
	if netns := p.netns(); netns != "" {
		if n, err := netdev.Read([]string{netns}); err == nil && len(n) > 0 {
			l.Network = figure.Network(n[netns], time.Now())
		}
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
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
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
	switch path {
	case "":
		return nil, fmt.Errorf("process %d: its cgroup is unknown", pid)
	case "/":
		return nil, nil // where the kernel puts one that has ended
	}
	return r.cfg.Cgroups.Group(path), nil
}

// groupOfPod is the group that holds those of a pod's containers and of its
// pause process, nil if it is not running or has no group of its own.
func (r *Runtime) groupOfPod(p *sandbox) *cgroup.Group {
	if p.rec.config().GetLinux().GetCgroupParent() == "" {
		return nil
	}
	g, err := r.groupOf(p.state.Pid)
	if err != nil || g == nil {
		return nil
	}
	return r.cfg.Cgroups.Group(filepath.Dir(g.Path()))
}

// gauges remembers what was measured before of pods and containers, by ID. The
// zero value is ready.
type gauges struct {
	mu   sync.Mutex
	byID map[string]*gauge
}

type gauge struct {
	cpu   figure.CPUClock
	layer disk.Layer
	upper string // guarded by gauges.mu
}

// upperDir is what find has found, the first time that it did.
func (s *gauges) upperDir(id string, find func() string) string {
	g := s.of(id)
	s.mu.Lock()
	upper := g.upper
	s.mu.Unlock()
	if upper == "" {
		upper = find()
		s.mu.Lock()
		g.upper = upper
		s.mu.Unlock()
	}
	return upper
}

func (s *gauges) of(id string) *gauge {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID == nil {
		s.byID = map[string]*gauge{}
	}
	g := s.byID[id]
	if g == nil {
		g = &gauge{}
		s.byID[id] = g
	}
	return g
}

func (s *gauges) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byID, id)
}
