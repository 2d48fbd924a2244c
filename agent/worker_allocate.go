package agent

import (
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/allocation"
	"podstead/agent/internal/eviction"
	"podstead/agent/internal/observe"
	"podstead/agent/internal/plan"
	"podstead/agent/internal/request"
	"podstead/agent/internal/status"
)

// allocated is the cpu and memory that a pod has been given. Its definition may
// ask for more than the node has; then what it was given stays in force.
type allocated struct {
	Pod        *corev1.ResourceRequirements           `json:",omitempty"`
	Containers map[string]corev1.ResourceRequirements `json:",omitempty"`
}

// pendingResize is why the pod has not got what its definition asks for now.
type pendingResize struct {
	reason, message string
	since           time.Time
	short           string // the kubelet's reason, of a pod that has not started
	added           bool   // containers were added, and no other is to have more
}

func allocationOf(pod *corev1.Pod) *allocated {
	a := &allocated{Pod: pod.Spec.Resources, Containers: map[string]corev1.ResourceRequirements{}}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			a.Containers[list[i].Name] = list[i].Resources
		}
	}
	return a
}

// apply returns the pod with what it was given.
func (a *allocated) apply(pod *corev1.Pod) *corev1.Pod {
	out := *pod
	if out.Spec.Resources != nil && a.Pod != nil {
		out.Spec.Resources = a.Pod
	}
	given := func(list []corev1.Container) []corev1.Container {
		list = slices.Clone(list)
		for i := range list {
			if r, ok := a.Containers[list[i].Name]; ok {
				list[i].Resources = merged(list[i].Resources, r)
			}
		}
		return list
	}
	out.Spec.InitContainers, out.Spec.Containers = given(out.Spec.InitContainers), given(out.Spec.Containers)
	return &out
}

// merged takes cpu and memory of what was given, and the rest as it is wanted.
func merged(want, given corev1.ResourceRequirements) corev1.ResourceRequirements {
	mix := func(want, given corev1.ResourceList) corev1.ResourceList {
		out := corev1.ResourceList{}
		for name, q := range want {
			if name != corev1.ResourceCPU && name != corev1.ResourceMemory {
				out[name] = q
			}
		}
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			if q, ok := given[name]; ok {
				out[name] = q
			}
		}
		if len(out) == 0 && want == nil {
			return nil
		}
		return out
	}
	want.Requests, want.Limits = mix(want.Requests, given.Requests), mix(want.Limits, given.Limits)
	return want
}

// allocate gives the pod the cpu and memory of its definition, if the node has
// them, and returns it with what it has.
func (w *worker) allocate(pod *corev1.Pod) *corev1.Pod {
	if w.alloc == nil || !w.admitted {
		w.alloc, w.pending = allocationOf(pod), nil
		return pod // whether it may start is asked when it is to start
	}
	has := w.alloc.apply(pod)
	same := reflect.DeepEqual(request.AllAmounts(has), request.AllAmounts(pod))
	if same && len(w.alloc.added(pod)) == 0 {
		w.alloc = allocationOf(pod)
		if w.pending != nil {
			w.pending = nil
			w.node.ledger.Settle(w.uid)
		}
		w.node.ledger.Hold(w.requests(pod)) // containers may have been taken out
		return pod
	}
	if why := w.pinned(has, pod); why != "" {
		w.pend(pod, &pendingResize{reason: corev1.PodReasonInfeasible, message: why, since: time.Now()})
		return has
	}
	short := w.node.ledger.Take(w.requests(pod))
	if short == nil {
		w.pending, w.alloc = nil, allocationOf(pod)
		if !same {
			w.node.event(pod, "", corev1.EventTypeNormal, "ResizeStarted", "Pod resize started")
		}
		return pod
	}
	p := &pendingResize{corev1.PodReasonDeferred, short.Error(), time.Now(), short.Reason(), same}
	if short.Never() {
		p.reason = corev1.PodReasonInfeasible
	}
	w.pend(pod, p)
	return has
}

// pend notes why the pod has not got what its definition asks for.
func (w *worker) pend(pod *corev1.Pod, p *pendingResize) {
	if old := w.pending; old != nil && old.message == p.message && old.added == p.added {
		return
	}
	w.pending = p
	if p.added {
		w.node.event(pod, "", corev1.EventTypeWarning, p.short, "Added containers wait: %s", p.message)
	} else {
		w.node.event(pod, "", corev1.EventTypeWarning, "Resize"+p.reason, "Pod resize %s: %s", p.reason, p.message)
	}
}

// added are the containers of the pod that nothing was given to yet.
func (a *allocated) added(pod *corev1.Pod) (names []string) {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if _, ok := a.Containers[list[i].Name]; !ok {
				names = append(names, list[i].Name)
			}
		}
	}
	return names
}

// late are the added containers for which there is no room yet. What runs goes on.
func (w *worker) late() map[string]plan.Wait {
	if w.pending == nil || !w.admitted {
		return nil
	}
	late := map[string]plan.Wait{}
	for _, name := range w.alloc.added(w.pod) {
		late[name] = plan.Wait{Reason: w.pending.short, Message: w.pending.message, Since: w.pending.since}
	}
	return late
}

func (w *worker) requests(pod *corev1.Pod) allocation.Request {
	return allocation.Request{UID: w.uid, Priority: priority(pod), Requests: request.Requests(pod), QoS: request.QoS(pod),
		Free: w.poke, Yield: func(lack corev1.ResourceName) { w.evict(preemption(lack)) }}
}

func priority(pod *corev1.Pod) int32 {
	if pod.Spec.Priority == nil {
		return 0
	}
	return *pod.Spec.Priority
}

// resizeStatus tells how far a resize is.
func (w *worker) resizeStatus() (s status.Resize) {
	if w.pending != nil && !w.pending.added {
		s.Pending, s.Message = w.pending.reason, w.pending.message
	}
	s.InProgress = w.last.Resizing && !w.last.Finished
	if f, ok := w.failures[plan.ResizeKey]; ok {
		s.Error = f.Message
	}
	return s
}

// retryResize asks again for what was not there.
func (w *worker) retryResize() {
	if w.pending == nil || w.ending != nil {
		return
	}
	if w.allocate(w.given); w.pending == nil {
		w.redefine(box{pod: w.given, objs: w.objs, origin: w.origin})
	}
}

// dropResize: a pod that has nothing of the node any more waits for no other amount
// of it, but is what its source says.
func (w *worker) dropResize() {
	if w.pending != nil {
		w.pending = nil
		w.redefine(box{pod: w.given, objs: w.objs, origin: w.origin})
	}
}

// admit is why a pod that has not started has to wait for others, nil if it has
// not to.
func (w *worker) admit() *plan.Wait {
	if w.admitted {
		return nil
	}
	if w.seen.Present() {
		w.node.ledger.Hold(w.requests(w.pod))
		w.admitted = true
		return nil
	}
	r := w.requests(w.pod)
	r.Preempts = eviction.Critical(w.pod)
	short := w.node.ledger.Take(r)
	if short == nil {
		w.admitted, w.short = true, nil
		return nil
	}
	if w.short == nil || w.short.Message != short.Error() {
		w.short = &plan.Wait{Reason: short.Reason(), Message: short.Error(), Since: time.Now()}
		w.node.event(w.pod, "", corev1.EventTypeWarning, short.Reason(), "Pod waits: %s", short.Error())
	}
	return w.short
}

// leaveNode gives back what the pod requests of the node, once it has ended.
func (w *worker) leaveNode() {
	over := w.last.Gone || w.last.Finished && (w.ending == nil || w.ending.Keep) && !w.seen.Running()
	switch {
	case over && (w.admitted || !w.comesBack()):
		w.node.ledger.Release(w.uid)
		w.admitted = false
		w.dropResize()
	case w.ending != nil:
		w.node.ledger.Leaves(w.uid)
	}
	if over && w.comesBack() {
		w.awaitRoom()
	}
	if over || w.ending != nil || w.begun() {
		w.node.order.Begun(w.uid)
	}
}

// begun tells whether others need not wait with their beginning for this pod:
// its containers were started, or something holds it up.
func (w *worker) begun() bool {
	if len(w.failures) > 0 {
		return true
	}
	for name, wait := range w.last.Waits {
		if name != "" || wait.Reason != priorityOrder {
			return true
		}
	}
	for i := range w.pod.Spec.Containers {
		c := w.seen.Latest(w.pod.Spec.Containers[i].Name)
		if c == nil || c.Remembered || c.State == observe.Created {
			return false
		}
	}
	return true
}
