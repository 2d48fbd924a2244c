package agent

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/observe"
	"podstead/agent/internal/request"
	"podstead/cri"
)

const resizeError = "ResizeError"

// resizing is what a Resize is to do, and what it did.
type resizing struct {
	group      observe.Resources // of the pod, before
	containers []resizeOf
	done       map[string]observe.Resources // by container ID
}

type resizeOf struct {
	id       string
	spec     *corev1.Container
	from, to observe.Resources
}

// resizes are the running containers that have other resources than they are to
// have.
func (w *worker) resizes() *resizing {
	r := &resizing{group: w.group, done: map[string]observe.Resources{}}
	for i := range w.seen.Containers {
		c := &w.seen.Containers[i]
		to, ok := w.hashes.Resources[c.Name]
		if ok && c.State == observe.Running && to != c.Resources {
			r.containers = append(r.containers, resizeOf{c.ID, w.spec(c.Name), c.Resources, to})
		}
	}
	return r
}

// resize changes the resources of what runs. The pod's own group bounds its
// containers: it grows before them and shrinks after them. Nothing is made
// smaller than what is used of it.
func (j job) resize(ctx context.Context) *stepError {
	ctx, cancel := context.WithTimeout(ctx, j.limits.ordinary)
	defer cancel()
	err := j.mayShrink(ctx)
	if err == nil {
		err = j.cgroups.grow(j.requestOf(""), j.pod, j.resizing.group)
	}
	for _, c := range j.resizing.containers {
		if err != nil {
			break
		}
		r := j.requestOf(c.spec.Name).Resources(j.pod, c.spec)
		r.OomScoreAdj = 0 // stays: the kernel has no group for it
		_, err = j.runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: r})
		if err != nil {
			err = fmt.Errorf("resize container %s: %w", c.spec.Name, err)
		} else {
			j.resizing.done[c.id] = c.to
		}
	}
	if err == nil {
		err = j.cgroups.resize(j.requestOf(""), j.pod, j.resizing.group)
	}
	if err == nil {
		err = j.tellSandbox(ctx)
	}
	if err != nil {
		if ctx.Err() == nil {
			j.event(j.pod, "", corev1.EventTypeWarning, resizeError, "Pod resize error: %v", err)
		}
		return failedStep(resizeError, err)
	}
	if len(j.resizing.containers) > 0 || j.resizing.group != (observe.Resources{}) {
		j.event(j.pod, "", corev1.EventTypeNormal, "ResizeCompleted", "Pod resize completed")
	} // else it was only not known what the pod's group had
	return nil
}

// tellSandbox lets the runtime, and who looks at it, know; not every runtime
// takes that.
func (j job) tellSandbox(ctx context.Context) error {
	_, err := j.runtime.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: j.sandbox.ID, Resources: j.requestOf("").PodResources(j.pod), Overhead: request.Overhead(j.pod)})
	if cri.Code(err) == codes.Unimplemented {
		return nil
	}
	return err
}

// mayShrink refuses limits of memory below what is used.
func (j job) mayShrink(ctx context.Context) error {
	pod := request.PodAmounts(j.pod).MemoryLimit
	podShrinks := shrinks(j.resizing.group.MemoryLimit, pod)
	limits := map[string]int64{}
	for _, c := range j.resizing.containers {
		if shrinks(c.from.MemoryLimit, c.to.MemoryLimit) {
			limits[c.id] = c.to.MemoryLimit
		}
	}
	if !podShrinks && len(limits) == 0 {
		return nil
	}
	stats, err := j.runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{
		Filter: &runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{observe.LabelPodUID: string(j.pod.UID), observe.LabelAgent: j.request.AgentID}}})
	if err != nil {
		return fmt.Errorf("what the pod uses of memory is not known: %w", err)
	}
	var errs []error
	total := int64(0)
	for _, s := range stats.Stats {
		used := memoryUsed(s.GetMemory())
		total += used
		if limit, ok := limits[s.GetAttributes().GetId()]; ok && used >= limit {
			errs = append(errs, fmt.Errorf("attempting to set container %q memory limit (%d) below current usage (%d)", s.Attributes.GetMetadata().GetName(), limit, used))
		}
	}
	if podShrinks && total >= pod {
		errs = append(errs, fmt.Errorf("attempting to set pod memory limit (%d) below current usage (%d)", pod, total))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot decrease memory limits: %w", err)
	}
	return nil
}

func shrinks(from, to int64) bool { return to != 0 && (from == 0 || to < from) }

func memoryUsed(m *runtimeapi.MemoryUsage) int64 {
	if m.GetUsageBytes() != nil {
		return int64(m.GetUsageBytes().GetValue())
	}
	return int64(m.GetWorkingSetBytes().GetValue())
}
