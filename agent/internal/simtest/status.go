package simtest

import (
	"maps"
	"reflect"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podstead/agent/internal/plan"
	"podstead/cri"
)

func timedOut(err error) bool { return cri.Code(err) == codes.DeadlineExceeded }

// seen is what was last told of a pod.
type seen struct {
	phase    corev1.PodPhase
	reason   string
	spec     corev1.PodSpec // of which that was told
	restarts map[string]int32
	ended    map[string]corev1.ContainerStateTerminated // by container ID
	ready    map[string]bool                            // by container ID
	created  metav1.Time
	deleted  bool // it was told to be going
	agent    int  // that told it
}

func newSeen() seen {
	return seen{restarts: map[string]int32{}, ended: map[string]corev1.ContainerStateTerminated{}, ready: map[string]bool{}}
}

// Told judges a description of a pod that the agent gives; gone is its last.
func (w *World) Told(def *corev1.Pod, gone bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.pods[string(def.UID)]
	if p == nil {
		return
	}
	if gone {
		p.seen, p.leaves = newSeen(), false
		return
	}
	st, old := &def.Status, &p.seen
	if old.deleted && def.DeletionTimestamp == nil {
		// Who watches is cut off by an agent's end, and what went and came back
		// meanwhile is another object, whose counts begin anew.
		if old.agent == w.agents || !old.created.Before(&def.CreationTimestamp) {
			w.wrong("%s was going and is there again", def.Name)
		}
		*old = newSeen()
	}
	old.created, old.deleted, old.agent = def.CreationTimestamp, def.DeletionTimestamp != nil, w.agents
	over := func(x corev1.PodPhase) bool { return x == corev1.PodSucceeded || x == corev1.PodFailed }
	if over(old.phase) && st.Phase != old.phase && old.reason != "Terminated" && old.reason != "Preempting" && reflect.DeepEqual(old.spec, def.Spec) {
		w.wrong("%s goes back from %s to %s", def.Name, old.phase, st.Phase)
	}
	for _, c := range w.sorted() {
		if over(st.Phase) && c.running() && c.sandbox.uid() == string(def.UID) && c.started.Before(time.Now()) {
			w.wrong("%s is %s while %s (%s) runs", def.Name, st.Phase, c.id, c.key())
		}
	}
	if over(st.Phase) && !over(old.phase) {
		w.note("%s is %s %s", def.Name, st.Phase, st.Reason)
	}
	old.phase, old.reason, old.spec = st.Phase, st.Reason, def.Spec // Terminated: by a shutdown, Preempting: for a critical pod
	if w.toldGates(p, def); st.Phase == corev1.PodFailed {
		p.fade()
	}
	all := slices.Concat(st.InitContainerStatuses, st.ContainerStatuses)
	for i := range all {
		w.told(p, def, &all[i])
	}
	maps.DeleteFunc(old.restarts, func(name string, _ int32) bool { // taken out; another of that name begins anew
		return !slices.ContainsFunc(all, func(c corev1.ContainerStatus) bool { return c.Name == name })
	})
}

func (w *World) told(p *pod, def *corev1.Pod, c *corev1.ContainerStatus) {
	old, name := &p.seen, def.Name
	if c.RestartCount < old.restarts[c.Name] {
		w.wrong("restartCount of %s/%s falls from %d to %d", name, c.Name, old.restarts[c.Name], c.RestartCount)
	}
	old.restarts[c.Name] = c.RestartCount
	for _, t := range []*corev1.ContainerStateTerminated{c.State.Terminated, c.LastTerminationState.Terminated} {
		if t == nil || t.ContainerID == "" {
			continue
		}
		before, known := old.ended[t.ContainerID]
		if known && (before.ExitCode != t.ExitCode || !before.FinishedAt.Equal(&t.FinishedAt)) {
			w.wrong("the end of %s (%s/%s) changes from %d at %v to %d at %v", t.ContainerID, name, c.Name,
				before.ExitCode, before.FinishedAt, t.ExitCode, t.FinishedAt)
		}
		old.ended[t.ContainerID] = *t
	}
	if c.State.Running != nil {
		if _, ended := old.ended[c.ContainerID]; ended {
			w.wrong("%s (%s/%s) had ended and runs again", c.ContainerID, name, c.Name)
		}
		w.toldReady(p, def, c)
	}
}

// toldReady judges whether readiness changed for a reason.
func (w *World) toldReady(p *pod, def *corev1.Pod, c *corev1.ContainerStatus) {
	name := def.Name
	was, known := p.seen.ready[c.ContainerID]
	p.seen.ready[c.ContainerID] = c.Ready
	if known && was == c.Ready {
		return
	}
	spec := plan.Find(def, c.Name) // the next definition may be there already
	x := p.last(c.Name)
	if spec == nil || x == nil || "sim://"+x.id != c.ContainerID {
		return
	}
	ready, failed := x.probes["ready"], x.probes["live"] != nil && x.probes["live"].bad > 0 || x.probes["startup"] != nil && x.probes["startup"].bad > 0
	switch {
	case c.Ready && spec.ReadinessProbe != nil && (ready == nil || !ready.was):
		w.wrong("%s/%s is ready though its probe never succeeded", name, c.Name)
	case !c.Ready && known && !failed && (spec.ReadinessProbe == nil || ready == nil || ready.bad < spec.ReadinessProbe.FailureThreshold):
		w.wrong("%s/%s is not ready any more though no probe failed often enough", name, c.Name)
	}
}
