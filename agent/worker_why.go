package agent

import (
	"maps"
	"slices"
	"strings"
	"time"

	"podstead/agent/client"
	"podstead/agent/internal/probe"
)

// moment is what changes of a pod without the worker's doing: it is looked at when
// somebody asks why (explain.go).
type moment struct {
	probes []probed
	kills  []killing
	group  string // of the pod, its cgroup; "" if the agent makes none
}

// probed is a container under watch, killing one whose end is under way.
type (
	probed struct {
		container string
		probes    *probe.Container
	}
	killing struct {
		container string
		until     time.Time // of its grace
	}
)

func (w *worker) moment() (out moment) {
	for _, id := range slices.Sorted(maps.Keys(w.probes)) {
		out.probes = append(out.probes, probed{w.known[id].Name, w.probes[id]})
	}
	slices.SortStableFunc(out.probes, func(a, b probed) int { return strings.Compare(a.container, b.container) })
	for _, name := range slices.Sorted(maps.Keys(w.busy)) {
		if r := w.busy[name]; !r.until.IsZero() {
			out.kills = append(out.kills, killing{name, r.until})
		}
	}
	if !w.node.cgroups.off() {
		out.group = w.node.request.CgroupParent(w.pod)
	}
	return out
}

// why explains the state of the pod as far as the worker decides it.
func (w *worker) why(now time.Time) client.Why {
	out := client.Why{Stage: w.doing(), Since: now}
	if out.Stage == w.stage.Stage {
		out.Since = w.stage.Since
	}
	for _, name := range slices.Sorted(maps.Keys(w.last.Waits)) {
		x := w.last.Waits[name]
		since := x.Since
		if first, ok := w.troubled[name]; ok && (since.IsZero() || first.Before(since)) {
			since = first
		}
		out.Waiting = append(out.Waiting, client.Wait{Container: name, Reason: x.Reason, Message: x.Message, Since: since, Until: x.Until})
	}
	out.Waiting = append(out.Waiting, w.gates()...)
	w.stage = client.Why{Stage: out.Stage, Since: out.Since}
	return out
}

// doing names what goes on, the most telling first.
func (w *worker) doing() string {
	var steps []string
	for _, name := range slices.Sorted(maps.Keys(w.busy)) {
		steps = append(steps, strings.TrimSpace(string(w.busy[name].step.Kind)+" "+name))
	}
	switch {
	case w.ending != nil && !w.ending.Keep:
		return strings.TrimSuffix("ending: "+strings.Join(steps, ", "), ": ")
	case len(steps) > 0:
		return strings.Join(steps, ", ")
	case w.last.Finished:
		return "finished"
	case w.last.Waits[""].Reason == nodePressure, w.last.Waits[""].Reason == priorityOrder, w.last.Waits[""].Reason == nodeShutdown,
		w.last.Waits[""].Reason == insufficientDevices, w.short != nil && !w.admitted:
		return "waiting for the node"
	case len(w.last.Waits) > 0:
		return "back-off"
	case w.seen.Running() && !isReady(&w.status):
		return "running, not ready"
	case w.seen.Running():
		return "running"
	}
	return "waiting"
}
