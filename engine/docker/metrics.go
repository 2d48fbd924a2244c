package docker

import (
	"cmp"
	"context"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/internal/disk"
	"podstead/engine/internal/metric"
	"podstead/engine/internal/netdev"
)

// ListMetricDescriptors lists what ListPodSandboxMetrics may give.
func (r *Runtime) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: r.metrics.Descriptors()}, nil
}

// ListPodSandboxMetrics measures all ready pods and their running containers.
// What ends meanwhile is left out.
func (r *Runtime) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	pods, err := r.pods(ctx)
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ListPodSandboxMetricsResponse{}
	for _, p := range pods {
		if !r.ready(p) {
			continue
		}
		m, err := r.podMetrics(ctx, p.id)
		if err != nil {
			return nil, err
		}
		if m != nil {
			resp.PodMetrics = append(resp.PodMetrics, m)
		}
	}
	return resp, nil
}

// podMetrics measures a pod and its containers, nil if it has ended.
func (r *Runtime) podMetrics(ctx context.Context, id string) (*runtimeapi.PodSandboxMetrics, error) {
	p, err := r.pod(ctx, id)
	if p == nil || err != nil {
		return nil, err
	}
	out := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.id}
	meta := p.rec.config().GetMetadata()
	if g := r.groupOfPod(p); g != nil {
		if usage, err := g.Usage(); err == nil {
			sample := &metric.Sample{
				Labels: metric.Labels{Pod: meta.GetName(), Namespace: meta.GetNamespace(), Cgroup: g.Path()},
				Seen:   time.Now(), Usage: &usage, DeviceName: disk.DeviceName, OOMKills: usage.OOMKills,
				Created: time.Unix(0, p.rec.CreatedAt), Started: time.Unix(0, p.rec.CreatedAt),
			}
			if netns := p.netns(); netns != "" {
				n, _ := netdev.Read([]string{netns})
				for _, i := range n[netns].Interfaces {
					sample.Interfaces = append(sample.Interfaces, metric.Interface(i))
				}
			}
			out.Metrics = r.metrics.Of(sample)
		}
	}
	ctrs, err := r.ctrs(ctx, p.id)
	if err != nil {
		return nil, err
	}
	for _, c := range ctrs {
		seen, err := r.ctr(ctx, c.id)
		if err != nil {
			return nil, err
		}
		if seen == nil || !seen.state.Running {
			continue
		}
		if of := r.ctrMetrics(ctx, seen, meta); of != nil {
			out.ContainerMetrics = append(out.ContainerMetrics, &runtimeapi.ContainerMetrics{ContainerId: c.id, Metrics: of})
		}
	}
	return out, nil
}

// ctrMetrics measures a container, nil if it has ended.
func (r *Runtime) ctrMetrics(ctx context.Context, c *ctr, pod *runtimeapi.PodSandboxMetadata) []*runtimeapi.Metric {
	g, err := r.groupOf(c.state.Pid)
	if err != nil || g == nil {
		return nil
	}
	usage, err := g.Usage()
	if err != nil {
		return nil
	}
	cfg := c.rec.config()
	sample := &metric.Sample{
		Labels: metric.Labels{
			Pod: pod.GetName(), Namespace: pod.GetNamespace(), Container: cfg.GetMetadata().GetName(), Cgroup: g.Path(),
			Image: cmp.Or(cfg.GetImage().GetUserSpecifiedImage(), c.rec.ImageName), ID: c.id,
		},
		Seen: time.Now(), Usage: &usage, DeviceName: disk.DeviceName, OOMKills: usage.OOMKills, // its group began with it
		Created: time.Unix(0, c.rec.CreatedAt), Started: time.Unix(0, nanoseconds(c.state.StartedAt)),
		Resources: r.resources(c), Processes: metric.ProcessesOf(g, c.state.Pid),
	}
	if f, err := disk.FilesystemOf(r.info().DockerRootDir); err == nil {
		sample.Disk = &metric.Disk{Device: f.Device, Bytes: f.Bytes, Inodes: f.Inodes, InodesFree: f.InodesFree}
		cpu, err := g.CPUNanoseconds()
		if err != nil {
			return nil
		}
		if u := r.writableLayer(ctx, c, cpu); u != nil {
			sample.Disk.Used, sample.Disk.UsedAt = &u.UsedBytes.Value, time.Unix(0, u.Timestamp)
		}
	}
	return r.metrics.Of(sample)
}
