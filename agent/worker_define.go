package agent

import (
	"maps"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"podstead/agent/internal/env"
	"podstead/agent/internal/plan"
	"podstead/agent/internal/request"
)

// redefine takes a new definition of the pod, or of the objects it refers to.
func (w *worker) redefine(b box) {
	w.given, w.objs, w.origin = b.pod, b.objs, b.origin
	next := w.whole()
	changed := w.pod == nil || !reflect.DeepEqual(w.pod.Spec, next.Spec)
	if changed && w.pod != nil {
		w.reprobe(next)
	}
	first := w.pod == nil
	w.pod = next
	w.hashes = hashes(w.pod)
	if w.objs != nil {
		w.flight.Hide(env.Secrets(w.pod, w.objs))
	}
	if w.failed != nil && w.failed.Hash != specHash(w.hashes) {
		// Another pod than the one that failed.
		if w.giveBack(); w.admitted {
			w.node.ledger.Release(w.uid) // while the runtime was away it could not be told that it has ended
		}
		w.failed, w.ending, w.start, w.admitted, w.set = nil, nil, time.Now(), false, conditions{}
	}
	w.set = w.set.of(w.hashes)
	if w.failed != nil && w.ending == nil {
		w.ending = &plan.End{At: time.Now(), Grace: w.grace(), Keep: true, Free: w.failed.Evicted}
		w.prepared = w.prepared || w.failed.Evicted
	}
	// What failed may succeed now: an object may be there, an image be named right.
	for key, f := range w.failures {
		if changed || retriedOnChange(f.Reason) {
			delete(w.failures, key)
			delete(w.tries, key)
		}
	}
	w.stale = true
	if changed {
		w.wasOver = w.wasOver && first && w.recorded != nil && reflect.DeepEqual(w.recorded.Spec, next.Spec)
		w.prepared = false // there may be new volumes: nothing starts before them
	}
}

func hashes(pod *corev1.Pod) plan.Hashes {
	h := plan.Hashes{Sandbox: request.SandboxHash(pod), Containers: map[string]string{},
		Resources: request.AllAmounts(pod), PodResources: request.PodAmounts(pod)}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			h.Containers[list[i].Name] = request.ContainerHash(pod, &list[i])
		}
	}
	return h
}

func specHash(h plan.Hashes) string {
	out := h.Sandbox
	for _, name := range slices.Sorted(maps.Keys(h.Containers)) {
		out += "." + h.Containers[name]
	}
	return out
}

// whole is the pod as its source has it, with the ephemeral containers that were
// added to it since, and with the cpu and memory that it was given. A container
// that its source names, too, is the source's.
func (w *worker) whole() *corev1.Pod {
	pod := *w.allocate(w.given)
	pod.Spec.EphemeralContainers = slices.Clone(pod.Spec.EphemeralContainers)
	for _, e := range w.debug {
		if plan.Find(&pod, e.Name) == nil {
			pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, e)
		}
	}
	return &pod
}

// containerNames are those of all containers of a pod.
func containerNames(pod *corev1.Pod) (names []string) {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			names = append(names, list[i].Name)
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		names = append(names, pod.Spec.EphemeralContainers[i].Name)
	}
	return names
}

// addDebug adds an ephemeral container, for good: it is in the record, so that a
// later agent knows it.
func (w *worker) addDebug(e corev1.EphemeralContainer) error {
	if w.ending != nil || w.last.Finished {
		return apierrors.NewConflict(corev1.Resource("pods"), w.pod.Name, errPodEnds)
	}
	e, err := w.node.decoder.AddEphemeral(w.pod, e)
	if err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	w.debug = append(slices.Clip(w.debug), e)
	w.redefine(box{pod: w.given, objs: w.objs, origin: w.origin})
	w.save()
	return nil
}
