package agent

import (
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// pulls are the times in which images were pulled for a pod. Steps add to it.
type pulls struct {
	mu    sync.Mutex
	spans []span
}

type span struct{ from, to time.Time }

func (p *pulls) add(from, to time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spans = append(p.spans, span{from, to})
}

func (p *pulls) all() []span {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.spans)
}

// together is how long one or the other of them lasted, between two times.
func together(spans []span, from, to time.Time) (sum time.Duration) {
	slices.SortFunc(spans, func(a, b span) int { return a.from.Compare(b.from) })
	for _, s := range spans {
		if s.from.After(from) {
			from = s.from
		}
		if s.to.After(to) {
			s.to = to
		}
		if s.to.After(from) {
			sum += s.to.Sub(from)
			from = s.to
		}
	}
	return sum
}

// measureStart notes, once for a pod that no agent knew before, how long it took
// until all its containers ran, and how much of that was for images and init
// containers.
func (w *worker) measureStart() {
	if w.pulls == nil || len(w.status.ContainerStatuses) < len(w.pod.Spec.Containers) {
		return
	}
	var last time.Time
	for _, c := range w.status.ContainerStatuses {
		if c.State.Running == nil {
			return
		}
		if at := c.State.Running.StartedAt.Time; at.After(last) {
			last = at
		}
	}
	// The status has whole seconds only.
	for _, c := range w.seen.Containers {
		if c.Started.After(last) && !c.Dead() {
			last = c.Started
		}
	}
	spans := w.pulls.all()
	for _, c := range w.seen.Containers {
		if c.Dead() && kindOf(w.pod, c.Name) == "init_container" {
			spans = append(spans, span{c.Started, c.Finished})
		}
	}
	w.node.metrics.AllRunning(last.Sub(w.start), together(spans, w.start, last), stateful(w.pod), !w.pod.Spec.HostNetwork)
	w.pulls = nil
}

// stateful tells whether a pod has volumes that are not its own, as the kubelet
// reckons.
func stateful(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.Secret == nil && v.ConfigMap == nil && v.EmptyDir == nil && v.DownwardAPI == nil && v.Projected == nil && v.CSI == nil
	})
}
