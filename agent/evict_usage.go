package agent

import (
	"context"
	"errors"
	"path/filepath"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/eviction"
	"podstead/agent/internal/observe"
	"podstead/agent/internal/pressure"
	"podstead/agent/internal/volume"
	"podstead/cri"
)

// usage asks the runtime what pods use, and measures their directories if disk
// is asked for. With an error, it is less than they use.
func (e *evictor) usage(ctx context.Context, pods []*corev1.Pod, disk bool) ([]eviction.Usage, error) {
	ctx, cancel := context.WithTimeout(ctx, measureTimeout)
	defer cancel()
	list := make([]eviction.Usage, len(pods))
	byUID := map[string]*eviction.Usage{}
	for i, p := range pods {
		list[i] = eviction.Usage{Pod: p, Containers: map[string]eviction.Container{}, Volumes: map[string]eviction.Disk{}}
		byUID[string(p.UID)] = &list[i]
	}
	errs := []error{e.containers(ctx, byUID), e.sandboxes(ctx, byUID)}
	if disk {
		for i := range list {
			errs = append(errs, e.measure(ctx, &list[i]))
		}
	}
	return list, errors.Join(errs...)
}

func (e *evictor) mine() map[string]string {
	return map[string]string{observe.LabelAgent: e.agent.node.request.AgentID}
}

func (e *evictor) containers(ctx context.Context, pods map[string]*eviction.Usage) error {
	stats, err := e.agent.cfg.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{
		Filter: &runtimeapi.ContainerStatsFilter{LabelSelector: e.mine()}})
	if err != nil {
		return err
	}
	for _, s := range stats.Stats {
		u := pods[s.GetAttributes().GetLabels()[observe.LabelPodUID]]
		if u == nil {
			continue
		}
		c := eviction.Container{Memory: int64(s.GetMemory().GetWorkingSetBytes().GetValue())}
		c.Writable.Bytes = int64(s.GetWritableLayer().GetUsedBytes().GetValue())
		c.Writable.Inodes = int64(s.GetWritableLayer().GetInodesUsed().GetValue())
		u.Containers[s.GetAttributes().GetMetadata().GetName()] = c
		u.Memory += c.Memory
	}
	return nil
}

// sandboxes adds what only the pod as a whole tells. Not every runtime does.
func (e *evictor) sandboxes(ctx context.Context, pods map[string]*eviction.Usage) error {
	stats, err := e.agent.cfg.Runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{
		Filter: &runtimeapi.PodSandboxStatsFilter{LabelSelector: e.mine()}})
	if cri.Code(err) == codes.Unimplemented {
		return nil
	}
	if err != nil {
		return err
	}
	for _, s := range stats.Stats {
		if u := pods[s.GetAttributes().GetLabels()[observe.LabelPodUID]]; u != nil {
			u.Memory = max(u.Memory, int64(s.GetLinux().GetMemory().GetWorkingSetBytes().GetValue()))
			u.Processes += int64(s.GetLinux().GetProcess().GetProcessCount().GetValue())
		}
	}
	return nil
}

// measure adds emptyDirs and logs.
func (e *evictor) measure(ctx context.Context, u *eviction.Usage) error {
	var errs []error
	n := e.agent.node
	for name, dir := range (volume.Pod{Dir: n.podDir(string(u.Pod.UID)), Spec: u.Pod}).Scratch() {
		d, err := n.measureVolume(ctx, u.Pod, dir)
		u.Volumes[name] = d
		errs = append(errs, err)
	}
	logs := n.request.LogDirectory(u.Pod)
	for _, name := range containerNames(u.Pod) {
		d, err := pressure.Measure(ctx, filepath.Join(logs, name))
		errs = append(errs, err)
		c := u.Containers[name]
		c.Logs = d
		u.Containers[name] = c
	}
	return errors.Join(errs...)
}
