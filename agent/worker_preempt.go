package agent

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/eviction"
)

// What is said of a pod that has to go for a critical one, in the kubelet's words.
const (
	preempting        = "Preempting"
	preemptingMessage = "Preempted in order to admit critical pod"
	preemptingDetail  = "Pod was preempted by Kubelet to accommodate a critical pod."
)

// preemption is the order to go for a critical pod, with all of its own grace.
func preemption(lack corev1.ResourceName) order {
	return order{signal: eviction.Signal(lack), reason: preempting, message: preemptingMessage, grace: 1 << 62, ended: make(chan struct{})}
}

// comesBack tells whether a pod that was preempted begins again when there is
// room: a kubelet leaves that to whoever made it, and here nobody did
// (decision 90). What must not be run twice stays as it is.
func (w *worker) comesBack() bool {
	return w.failed != nil && w.failed.Preempted && w.pod.Spec.RestartPolicy != corev1.RestartPolicyNever && !w.last.Gone &&
		(w.ending == nil || w.ending.Keep)
}

// awaitRoom asks for what the pod had before it was preempted.
func (w *worker) awaitRoom() {
	if w.again || w.node.down.Load() || !w.node.order.Turn(w.uid, w.poke) {
		return
	}
	if w.node.ledger.Take(w.requests(w.pod)) == nil {
		w.again = true
		w.poke()
	}
}

// giveBack the room that a preempted pod was given and has not used yet: a critical
// pod wants it, or the pod has become another one, which has to ask itself.
func (w *worker) giveBack() {
	if w.again {
		w.again = false
		w.node.ledger.Release(w.uid)
	}
}

// comeBack begins anew what was preempted, now that there is room for it.
func (w *worker) comeBack() {
	if !w.again {
		return
	}
	if w.again = false; !w.comesBack() {
		return
	}
	w.failed, w.ending, w.start, w.wasOver, w.admitted, w.prepared, w.set = nil, nil, time.Now(), false, true, false, conditions{}
	w.dirty = true
	w.last.Finished = false // or it would not heed that it has to go at once
}
