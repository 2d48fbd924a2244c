package agent

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/eviction"
	"podstead/agent/internal/plan"
	"podstead/agent/internal/request"
	"podstead/cri"
)

// order to a pod to go.
type order struct {
	signal  eviction.Signal // that it is for, or the resource that a critical pod lacks
	reason  string          // "" for Evicted; else it is for a shutdown or a critical pod
	message string
	grace   time.Duration // the pod's own counts if that is less
	disk    bool          // what its containers wrote is to be freed, too
	ended   chan struct{} // closed when that is done
}

// evict tells the pod to go. It stays in sight, as a failed one.
func (w *worker) evict(e order) { w.leave(func(b *box) { b.evict = &e }) }

// fall begins the end of an evicted pod, unless it is ending or failed anyway.
func (w *worker) fall(e order) {
	if e.reason == preempting {
		w.giveBack()
	}
	if w.ending != nil || w.failed != nil || w.last.Finished {
		if w.ending != nil && !w.ending.Keep && w.evicted == nil {
			w.evicted = e.ended // it is going already
			return
		}
		close(e.ended)
		return
	}
	evicted := e.reason != shutdownReason
	w.failed = &failedRecord{Reason: cmp.Or(e.reason, "Evicted"), Message: e.message, Hash: specHash(w.hashes), Evicted: evicted,
		Disk: e.disk, Shutdown: !evicted, Preempted: e.reason == preempting}
	w.node.event(w.pod, "", corev1.EventTypeWarning, w.failed.Reason, "%s", e.message)
	switch {
	case w.failed.Preempted:
		w.node.metrics.Preempted(string(e.signal))
	case evicted:
		w.node.metrics.Evicted(string(e.signal))
	}
	w.ending = &plan.End{At: time.Now(), Grace: min(w.grace(), e.grace), Keep: true, Free: evicted}
	w.prepared = w.prepared || evicted // there is something to free
	clear(w.failures)
	w.evicted = e.ended
}

// nodePressure is the reason for which a pod waits that is held.
const nodePressure = "NodePressure"

// insufficientDevices is the reason for which a pod waits that asks for devices
// which are not free. A kubelet would reject it.
const insufficientDevices = "InsufficientDevices"

// priorityOrder is the reason for which a pod waits when the agent has started.
const priorityOrder = "PriorityOrder"

// hold is why a pod that has not started has to wait, nil if it has not.
func (w *worker) hold() *plan.Wait {
	if w.ending != nil {
		return nil
	}
	if w.seen.Present() {
		return w.admit()
	}
	if w.node.down.Load() {
		return &plan.Wait{Reason: nodeShutdown, Message: shutdownHoldMessage}
	}
	if lack := w.node.devices.Lacks(w.pod); lack != "" {
		return &plan.Wait{Reason: insufficientDevices, Since: w.start, Message: lack}
	}
	conditions, since := w.node.pressure.get()
	known := len(w.seen.Sandboxes)+len(w.seen.Containers) > 0
	if known || eviction.Admits(w.pod, request.QoS(w.pod) == corev1.PodQOSBestEffort, conditions) {
		if !w.node.order.Turn(w.uid, w.poke) {
			return &plan.Wait{Reason: priorityOrder, Message: "Pods of a higher priority begin first."}
		}
		if wait := w.admit(); wait != nil {
			return wait
		}
		return w.place()
	}
	return &plan.Wait{Reason: nodePressure, Since: since,
		Message: fmt.Sprintf("The node had condition: %v. The pod starts when that is over.", conditions)}
}

// pressed is what the node is short of.
type pressed struct {
	mu         sync.Mutex
	conditions []corev1.NodeConditionType
	since      time.Time
}

func (p *pressed) get() ([]corev1.NodeConditionType, time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conditions, p.since
}

// tight tells whether disks are full.
func (p *pressed) tight() bool {
	conditions, _ := p.get()
	return slices.Contains(conditions, corev1.NodeDiskPressure)
}

// set tells whether that is news.
func (p *pressed) set(conditions []corev1.NodeConditionType) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.Equal(p.conditions, conditions) {
		return false
	}
	p.conditions, p.since = conditions, time.Now()
	return true
}

// fallen tells who evicted the pod that it has ended.
func (w *worker) fallen() {
	if w.evicted != nil && (w.last.Finished || w.last.Gone || w.ending == nil) {
		close(w.evicted)
		w.evicted = nil
	}
}

// dead are the containers whose file systems an evicted pod gives back.
func (w *worker) dead() (ids []string) {
	if w.failed == nil || !w.failed.Disk {
		return nil
	}
	for _, c := range w.seen.Containers {
		if c.Dead() && !c.Remembered {
			ids = append(ids, c.ID)
		}
	}
	return ids
}

// free gives back what an evicted pod holds: its emptyDirs, and for the disk's
// sake its containers, which are remembered. Their logs stay.
func (j job) free(ctx context.Context) *stepError {
	ctx, cancel := context.WithTimeout(ctx, j.limits.ordinary)
	defer cancel()
	for _, id := range j.dead {
		if _, err := j.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil && !cri.IsNotFound(err) {
			return failedStep(failedKillPod, err)
		}
	}
	if err := j.volumes().Free(); err != nil {
		j.event(j.pod, "", corev1.EventTypeWarning, "FailedUnMount", "%v", err)
		return failedStep(failedKillPod, err)
	}
	return nil
}
