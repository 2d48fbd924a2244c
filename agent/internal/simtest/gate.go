package simtest

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// opened is what was set of one of a pod's conditions.
type opened struct {
	// may be told: two, while it is being set and if nobody knows whether it was.
	may []corev1.ConditionStatus
	// fades: the pod was to begin anew since, and does so without it.
	fades bool
	at    time.Time // that it was set
	late  bool      // it is being set of a pod that has ended
}

// Setting tells that somebody begins to set a condition, and Set that it is set.
func (w *World) Setting(uid string, kind corev1.PodConditionType, status corev1.ConditionStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.pods[uid]
	if p == nil {
		return
	}
	o := p.conditions[kind]
	if o == nil {
		o = &opened{fades: true} // it may not come to that
		if p.conditions == nil {
			p.conditions = map[corev1.PodConditionType]*opened{}
		}
		p.conditions[kind] = o
	}
	w.note("condition %s of %s is to be %s", kind, p.now().pod.Name, status)
	o.may, o.late = append(o.may, status), p.leaves || p.seen.deleted || p.seen.phase == corev1.PodFailed
}

// Set tells that a condition was set.
func (w *World) Set(uid string, kind corev1.PodConditionType, status corev1.ConditionStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.pods[uid]; p != nil && p.conditions[kind] != nil {
		o := p.conditions[kind]
		*o = opened{may: []corev1.ConditionStatus{status}, fades: o.late, at: time.Now()}
	}
}

// fade lets a pod's conditions go: it is to end, or has been given another
// definition by which it begins anew.
func (p *pod) fade() {
	for _, o := range p.conditions {
		o.fades = true
	}
}

// mayFail tells whether a pod may have failed since some time: if so it begins anew
// when it is wanted otherwise or when what made it fail is over.
func (w *World) mayFail(p *pod, since time.Time) bool {
	return p.seen.phase == corev1.PodFailed || !p.fellAt.IsZero() || w.pressed.After(since) || w.shut.After(since) ||
		slices.ContainsFunc(p.versions, func(v version) bool { return v.pod.Spec.ActiveDeadlineSeconds != nil })
}

// toldGates judges the conditions of a pod: it is ready if and only if its
// containers are, and what its gates name is as it should be; and what was set stays.
func (w *World) toldGates(p *pod, def *corev1.Pod) {
	told := map[corev1.PodConditionType]corev1.ConditionStatus{}
	for _, c := range def.Status.Conditions {
		if told[c.Type] != "" {
			w.wrong("%s has two conditions %s", def.Name, c.Type)
		}
		told[c.Type] = c.Status
	}
	containers := def.Status.Phase != corev1.PodSucceeded && def.Status.Phase != corev1.PodFailed
	for i, c := range def.Status.InitContainerStatuses {
		containers = containers && (c.Ready || !sidecar(&def.Spec.InitContainers[i]))
	}
	for _, c := range def.Status.ContainerStatuses {
		containers = containers && c.Ready
	}
	if is := told[corev1.ContainersReady] == corev1.ConditionTrue; is != containers {
		w.wrong("%s has ContainersReady %v, its containers %+v", def.Name, is, def.Status.ContainerStatuses)
	}
	gates := true
	for _, g := range def.Spec.ReadinessGates {
		gates = gates && told[g.ConditionType] == corev1.ConditionTrue
	}
	if is := told[corev1.PodReady] == corev1.ConditionTrue; is != (containers && gates) {
		w.wrong("%s is ready: %v, its containers: %v, conditions %v", def.Name, is, containers, told)
	}
	for kind, o := range p.conditions {
		switch {
		case told[kind] == "" && !o.fades && !w.mayFail(p, o.at):
			w.wrong("%s has lost its condition %s", def.Name, kind)
		case told[kind] != "" && !slices.Contains(o.may, told[kind]):
			w.wrong("%s has %s=%s, which was set to %v", def.Name, kind, told[kind], o.may)
		}
	}
	for _, kind := range Gates() {
		if told[kind] != "" && p.conditions[kind] == nil {
			w.wrong("%s has %s=%s, which nobody has set", def.Name, kind, told[kind])
		}
	}
}

// Gates are the types of conditions that are set.
func Gates() []corev1.PodConditionType { return []corev1.PodConditionType{"a/one", "two"} }
