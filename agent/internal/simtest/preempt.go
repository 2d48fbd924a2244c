package simtest

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/eviction"
	"podstead/agent/internal/request"
)

// Narrow bounds what all pods together may request of cpu, in thousandths.
func (w *World) Narrow(cpu int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.narrow = cpu
}

// late is how long after a critical pod has gone another may still end for it: its
// worker may have been waiting for the runtime when it was told.
const late = 2 * time.Minute

// Preempted judges that the agent has a pod end for a critical one.
func (w *World) Preempted(def *corev1.Pod) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.pods[string(def.UID)]
	if p == nil {
		return
	}
	w.note("%s has to go for a critical pod", def.Name)
	p.fellAt = time.Now()
	switch {
	case eviction.Critical(def):
		w.wrong("the critical pod %s is preempted", def.Name)
	case !w.needed(p, time.Now().Add(-late)):
		w.wrong("%s is preempted though there is no critical pod, or room for it", def.Name)
	}
}

// needed tells whether a critical pod was wanted after some time for which there
// was no room beside what others may have had.
func (w *World) needed(p *pod, since time.Time) bool {
	if w.narrow == 0 || eviction.Critical(p.now().pod) {
		return false
	}
	all, there := int64(0), false
	for _, other := range w.pods {
		if len(other.versions) == 0 || !other.endAt.IsZero() && other.endAt.Add(late).Before(since) {
			continue
		}
		most := int64(0)
		for _, v := range other.versions {
			r := request.Requests(v.pod)
			most = max(most, r.Cpu().MilliValue())
		}
		all += most
		there = there || eviction.Critical(other.now().pod)
	}
	return there && all > w.narrow
}
