package engine

import (
	"cmp"
	"context"
	"path/filepath"
	"slices"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cgroup"
	"podstead/engine/internal/disk"
	"podstead/engine/internal/metric"
	"podstead/engine/internal/netdev"
)

// ListMetricDescriptors lists what ListPodSandboxMetrics may give.
func (e *Engine) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: e.metrics.Descriptors()}, nil
}

// ListPodSandboxMetrics measures all ready pods and their running containers.
// What ends meanwhile is left out.
func (e *Engine) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	s := &scrape{e: e, devices: map[[2]uint32]string{}, containers: map[string][]*container{}}
	for _, c := range e.allContainers() {
		if c.record().Phase == containerRunning {
			s.containers[c.sandboxID] = append(s.containers[c.sandboxID], c)
		}
	}
	var sandboxes []*sandbox
	for _, sb := range e.allSandboxes() {
		if sb.record().Phase == sandboxReady {
			sandboxes = append(sandboxes, sb)
		}
	}
	slices.SortFunc(sandboxes, func(a, b *sandbox) int { return strings.Compare(a.id, b.id) })
	var err error
	if s.networks, err = e.readNetworks(sandboxes); err != nil {
		return nil, err
	}
	if f, err := disk.FilesystemOf(filepath.Join(e.cfg.StateDir, "containers")); err == nil {
		s.filesystem = &f
	}
	s.survey(ctx)
	resp := &runtimeapi.ListPodSandboxMetricsResponse{}
	for _, sb := range sandboxes {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if pod := s.pod(sb); pod != nil {
			resp.PodMetrics = append(resp.PodMetrics, pod)
		}
	}
	return resp, nil
}

// scrape is one round of measuring.
type scrape struct {
	e          *Engine
	containers map[string][]*container // running, by sandbox
	networks   map[string]netdev.Usage
	filesystem *disk.Filesystem
	devices    map[[2]uint32]string
}

// survey has writable layers counted, and waits a moment.
func (s *scrape) survey(ctx context.Context) {
	var surveys []<-chan struct{}
	for _, of := range s.containers {
		for _, c := range of {
			if st, err := s.e.cfg.Cgroups.Group(c.record().Cgroup).CPUNanoseconds(); err == nil {
				surveys = append(surveys, s.e.survey(c, st))
			}
		}
	}
	awaitSurveys(ctx, surveys)
}

// pod measures a pod and its containers, nil if it has ended.
func (s *scrape) pod(sb *sandbox) *runtimeapi.PodSandboxMetrics {
	rec := sb.record()
	usage, err := s.e.cfg.Cgroups.Group(rec.CgroupParent).Usage()
	if err != nil {
		return nil
	}
	m := rec.config().GetMetadata()
	sample := s.sample(metric.Labels{Pod: m.GetName(), Namespace: m.GetNamespace(), Cgroup: rec.CgroupParent}, &usage)
	sample.Created, sample.Started, sample.OOMKills = rec.CreatedAt, rec.CreatedAt, usage.OOMKills
	for _, i := range s.networks[sb.id].Interfaces {
		sample.Interfaces = append(sample.Interfaces, metric.Interface(i))
	}
	out := &runtimeapi.PodSandboxMetrics{PodSandboxId: sb.id, Metrics: s.e.metrics.Of(sample)}
	containers := s.containers[sb.id]
	slices.SortFunc(containers, func(a, b *container) int { return strings.Compare(a.id, b.id) })
	for _, c := range containers {
		if of := s.container(c, m); of != nil {
			out.ContainerMetrics = append(out.ContainerMetrics, &runtimeapi.ContainerMetrics{ContainerId: c.id, Metrics: of})
		}
	}
	return out
}

func (s *scrape) sample(l metric.Labels, u *cgroup.Usage) *metric.Sample {
	return &metric.Sample{Labels: l, Seen: time.Now(), Usage: u, DeviceName: s.device}
}

// container measures a container, nil if it has ended.
func (s *scrape) container(c *container, pod *runtimeapi.PodSandboxMetadata) []*runtimeapi.Metric {
	rec := c.record()
	g := s.e.cfg.Cgroups.Group(rec.Cgroup)
	usage, err := g.Usage()
	if err != nil {
		return nil
	}
	sample := s.sample(metric.Labels{
		Pod: pod.GetName(), Namespace: pod.GetNamespace(), Container: rec.config().GetMetadata().GetName(),
		Cgroup: rec.Cgroup, Image: cmp.Or(rec.config().GetImage().GetUserSpecifiedImage(), rec.ImageName), ID: c.id,
	}, &usage)
	sample.Created, sample.Started = rec.CreatedAt, rec.StartedAt
	sample.Resources = rec.Resources.M
	if usage.OOMKills != nil {
		sample.OOMKills = new(*usage.OOMKills - min(rec.OOMKills, *usage.OOMKills))
	}
	if f := s.filesystem; f != nil {
		sample.Disk = &metric.Disk{Device: f.Device, Bytes: f.Bytes, Inodes: f.Inodes, InodesFree: f.InodesFree}
		if u, ok := c.layer.Usage(); ok {
			sample.Disk.Used, sample.Disk.UsedAt = &u.Bytes, u.At
		}
	}
	sample.Processes = metric.ProcessesOf(g, s.e.hostPid(&rec))
	if c.record().Phase != containerRunning {
		return nil
	}
	return s.e.metrics.Of(sample)
}

// device names a block device as /dev has it, "" if nobody knows.
func (s *scrape) device(major, minor uint32) string {
	key := [2]uint32{major, minor}
	name, known := s.devices[key]
	if !known {
		name = disk.DeviceName(major, minor)
		s.devices[key] = name
	}
	return name
}
