package engine

import (
	"context"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/internal/figure"
	"podstead/engine/internal/netdev"
	"podstead/engine/internal/pod"
)

// ContainerStats tells what a container uses. One that does not run uses disk.
func (e *Engine) ContainerStats(ctx context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := e.mustContainer(req.ContainerId)
	if err != nil {
		return nil, err
	}
	st, survey, err := e.containerStats(c)
	if err != nil {
		if _, gone := e.mustContainer(c.id); gone != nil {
			return nil, gone
		}
		return nil, err
	}
	awaitSurveys(ctx, []<-chan struct{}{survey})
	st.WritableLayer = e.layerUsage(c)
	return &runtimeapi.ContainerStatsResponse{Stats: st}, nil
}

// ListContainerStats tells it of all running containers that pass the filters.
func (e *Engine) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	f := req.GetFilter()
	byPod := e.runningStats(ctx, func(r *containerRecord) bool {
		return strings.HasPrefix(r.ID, f.GetId()) && strings.HasPrefix(r.SandboxID, f.GetPodSandboxId()) &&
			pod.Selects(f.GetLabelSelector(), r.config().GetLabels())
	})
	resp := &runtimeapi.ListContainerStatsResponse{}
	for _, of := range byPod {
		resp.Stats = append(resp.Stats, of...)
	}
	slices.SortFunc(resp.Stats, func(a, b *runtimeapi.ContainerStats) int { return strings.Compare(a.Attributes.Id, b.Attributes.Id) })
	return resp, nil
}

// runningStats collects what it can, by sandbox: a container that ends meanwhile
// is left out.
func (e *Engine) runningStats(ctx context.Context, wanted func(*containerRecord) bool) map[string][]*runtimeapi.ContainerStats {
	type found struct {
		c  *container
		st *runtimeapi.ContainerStats
	}
	var all []found
	var surveys []<-chan struct{}
	for _, c := range e.allContainers() {
		rec := c.record()
		if rec.Phase != containerRunning || !wanted(&rec) {
			continue
		}
		st, survey, err := e.containerStats(c)
		if err != nil || st.Cpu == nil {
			continue
		}
		all = append(all, found{c, st})
		surveys = append(surveys, survey)
	}
	awaitSurveys(ctx, surveys)
	byPod := map[string][]*runtimeapi.ContainerStats{}
	for _, f := range all {
		f.st.WritableLayer = e.layerUsage(f.c)
		byPod[f.c.sandboxID] = append(byPod[f.c.sandboxID], f.st)
	}
	for _, of := range byPod {
		slices.SortFunc(of, func(a, b *runtimeapi.ContainerStats) int { return strings.Compare(a.Attributes.Id, b.Attributes.Id) })
	}
	return byPod
}

// containerStats reads all but the writable layer's usage, which is there when
// the channel is closed.
func (e *Engine) containerStats(c *container) (*runtimeapi.ContainerStats, <-chan struct{}, error) {
	rec := c.record()
	st := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{
		Id: c.id, Metadata: proto.CloneOf(rec.config().Metadata),
		Labels: maps.Clone(rec.config().GetLabels()), Annotations: maps.Clone(rec.config().GetAnnotations()),
	}}
	if rec.Phase == containerExited {
		return st, e.survey(c, activityOver), nil
	}
	g := e.cfg.Cgroups.Group(rec.Cgroup)
	s, err := e.usageOf(&rec, g)
	if err == nil {
		st.Cpu, st.Memory, st.Swap = c.cpu.Usage(s, rec.StartedAt), figure.Memory(s), figure.Swap(s)
		st.Io, err = figure.AddPressures(g, st.Cpu, st.Memory)
	}
	if err != nil {
		if c.record().Phase == rec.Phase {
			return nil, nil, err
		}
		return e.containerStats(c) // it has ended; phases only go on
	}
	return st, e.survey(c, s.CPUNanoseconds), nil
}

// PodSandboxStats tells what a pod uses as a whole.
func (e *Engine) PodSandboxStats(ctx context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	if req.PodSandboxId == "" {
		// The kubelet asks so whether the call is implemented.
		return nil, cri.Errorf(codes.NotFound, "pod sandbox %q does not exist", "")
	}
	s, err := e.mustSandbox(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	stats, err := e.sandboxStats(ctx, []*sandbox{s})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: stats[0]}, nil
}

// ListPodSandboxStats tells it of all ready sandboxes that pass the filters.
func (e *Engine) ListPodSandboxStats(ctx context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	f := req.GetFilter()
	var wanted []*sandbox
	for _, s := range e.allSandboxes() {
		rec := s.record()
		if rec.Phase == sandboxReady && strings.HasPrefix(s.id, f.GetId()) && pod.Selects(f.GetLabelSelector(), rec.config().GetLabels()) {
			wanted = append(wanted, s)
		}
	}
	slices.SortFunc(wanted, func(a, b *sandbox) int { return strings.Compare(a.id, b.id) })
	stats, err := e.sandboxStats(ctx, wanted)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: stats}, nil
}

// sandboxStats reads the pods' cgroups, which are those of their requests'
// cgroup_parent, and their network namespaces.
func (e *Engine) sandboxStats(ctx context.Context, sandboxes []*sandbox) ([]*runtimeapi.PodSandboxStats, error) {
	wanted := map[string]bool{}
	for _, s := range sandboxes {
		wanted[s.id] = true
	}
	containers := e.runningStats(ctx, func(r *containerRecord) bool { return wanted[r.SandboxID] })
	networks, err := e.readNetworks(sandboxes)
	if err != nil {
		return nil, err
	}
	at := time.Now()
	var all []*runtimeapi.PodSandboxStats
	for _, s := range sandboxes {
		rec := s.record()
		l := e.podUsage(s, &rec)
		l.Containers = containers[s.id]
		if n, ok := networks[s.id]; ok {
			l.Network = figure.Network(n, at)
		}
		all = append(all, &runtimeapi.PodSandboxStats{
			Attributes: &runtimeapi.PodSandboxAttributes{
				Id: s.id, Metadata: proto.CloneOf(rec.config().Metadata),
				Labels: maps.Clone(rec.config().GetLabels()), Annotations: maps.Clone(rec.config().GetAnnotations()),
			},
			Linux: l,
		})
	}
	return all, nil
}

// podUsage reads a pod's cgroup. What cannot be read, since the pod is on its
// way out, is left out.
func (e *Engine) podUsage(s *sandbox, rec *sandboxRecord) *runtimeapi.LinuxPodSandboxStats {
	l := &runtimeapi.LinuxPodSandboxStats{}
	if rec.Phase != sandboxReady {
		return l
	}
	g := e.cfg.Cgroups.Group(rec.CgroupParent)
	st, err := g.Stats()
	if err != nil {
		return l
	}
	since := time.Time{}
	if rec.OwnCgroup {
		since = rec.CreatedAt // another's group may have been there before
	}
	l.Cpu, l.Memory = s.cpu.Usage(st, since), figure.Memory(st)
	if pids, err := g.Procs(); err == nil {
		own, _ := e.cfg.Cgroups.Group(pauseCgroup(rec)).Procs() // those that wait for nothing
		pids = slices.DeleteFunc(pids, func(pid int) bool { return slices.Contains(own, pid) })
		l.Process = &runtimeapi.ProcessUsage{Timestamp: st.Time.UnixNano(), ProcessCount: figure.Value(uint64(len(pids)))}
	}
	if l.Io, err = figure.AddPressures(g, l.Cpu, l.Memory); err != nil {
		return &runtimeapi.LinuxPodSandboxStats{}
	}
	return l
}

// readNetworks reads the interfaces of those sandboxes that have a network of
// their own, by ID.
func (e *Engine) readNetworks(sandboxes []*sandbox) (map[string]netdev.Usage, error) {
	paths := map[string]string{}
	for _, s := range sandboxes {
		rec := s.record()
		if path := e.netnsPath(&rec); path != "" && rec.Phase == sandboxReady {
			paths[s.id] = path
		}
	}
	byPath, err := netdev.Read(slices.Collect(maps.Values(paths)))
	if err != nil {
		return nil, err
	}
	byID := map[string]netdev.Usage{}
	for id, path := range paths {
		if u, ok := byPath[path]; ok {
			byID[id] = u
		}
	}
	return byID, nil
}

// surveyWait is how long a request waits for writable layers to be counted.
const surveyWait = 100 * time.Millisecond

// activityOver stands for a container that will never run again.
const activityOver = 1<<64 - 1

// survey sees to it that a container's writable layer is counted anew if it may
// have changed.
func (e *Engine) survey(c *container, activity uint64) <-chan struct{} {
	return e.surveyor.Survey(&c.layer, e.layerTree(c), activity)
}

// awaitSurveys waits a moment; what takes longer is left to the next request.
func awaitSurveys(ctx context.Context, surveys []<-chan struct{}) {
	timer := time.NewTimer(surveyWait)
	defer timer.Stop()
	for _, done := range surveys {
		if done == nil {
			continue
		}
		select {
		case <-done:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// layerUsage is what is known of a writable layer, nil if nothing is yet.
func (e *Engine) layerUsage(c *container) *runtimeapi.FilesystemUsage {
	u, ok := c.layer.Usage()
	if !ok {
		return nil
	}
	return &runtimeapi.FilesystemUsage{
		Timestamp: u.At.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: e.layersDir()},
		UsedBytes: figure.Value(u.Bytes), InodesUsed: figure.Value(u.Inodes),
	}
}

// layersDir holds all writable layers.
func (e *Engine) layersDir() string { return filepath.Join(e.cfg.StateDir, "containers") }

// layersUsage is what is known of all writable layers together.
func (e *Engine) layersUsage(ctx context.Context) (bytes, inodes uint64) {
	var surveys []<-chan struct{}
	all := e.allContainers()
	for _, c := range all {
		activity := uint64(activityOver)
		if rec := c.record(); rec.Phase != containerExited {
			if n, err := e.cfg.Cgroups.Group(rec.Cgroup).CPUNanoseconds(); err == nil {
				activity = n
			}
		}
		surveys = append(surveys, e.survey(c, activity))
	}
	awaitSurveys(ctx, surveys)
	for _, c := range all {
		if u, ok := c.layer.Usage(); ok {
			bytes += u.Bytes
			inodes += u.Inodes
		}
	}
	return bytes, inodes
}
