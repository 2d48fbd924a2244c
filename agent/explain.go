package agent

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"podstead/agent/client"
	"podstead/agent/internal/image"
	"podstead/agent/internal/pinning"
	"podstead/agent/internal/plan"
	"podstead/agent/internal/probe"
	"podstead/agent/internal/stuck"
)

// Reasons of waits beside those of containers' states.
const (
	inProgress = "InProgress"    // something that was begun and has not ended
	notReady   = "NotReady"      // by its readiness probe
	notStarted = "NotStarted"    // by its startup probe
	unhealthy  = "Unhealthy"     // by its liveness probe
	isStuck    = "Stuck"         // in the kernel
	atGate     = "ReadinessGate" // a condition that is not true
)

// explain adds to what the worker says of a pod what is so at this moment.
func (a *Agent) explain(p posted, now time.Time) client.Why {
	why := p.why
	why.Waiting = slices.Clone(why.Waiting)
	why.Waiting = append(why.Waiting, underWay(p.flight.UnderWay())...)
	for _, c := range p.moment.probes {
		for _, r := range c.probes.Reports() {
			if w, waits := probeWait(c.container, r); waits {
				why.Waiting = append(why.Waiting, w)
			}
		}
	}
	why.Waiting = append(why.Waiting, a.stuckIn(p.moment)...)
	why.Next = next(why.Waiting, p.moment.kills, now)
	return why
}

// underWay tells of each container what has begun and not ended: the steps from
// the outermost in, and how long the innermost takes already.
func underWay(entries []client.FlightEntry) (out []client.Wait) {
	for _, e := range entries {
		i := slices.IndexFunc(out, func(w client.Wait) bool { return w.Container == e.Container })
		if i < 0 {
			out = append(out, client.Wait{Container: e.Container, Reason: inProgress, Message: e.What, Since: e.At})
			continue
		}
		if e.Kind == client.FlightCall && strings.HasSuffix(out[i].Message, strings.TrimPrefix(e.What, "PullImage ")) {
			continue // "pull a: PullImage a"
		}
		out[i].Message += ": " + e.What
		out[i].Since = e.At
	}
	for i, w := range out {
		if _, name, ok := strings.Cut(w.Message, ": pull "); ok {
			out[i].Message += " from " + image.Host(name)
		}
	}
	return out
}

// probeWait tells what a probe that does not succeed keeps its container from.
func probeWait(container string, r probe.Report) (w client.Wait, waits bool) {
	kind := strings.ToLower(r.Kind) + " probe"
	w = client.Wait{Container: container, Since: r.Since, Until: r.Next}
	after := ""
	switch {
	case r.OK && !r.Errored && (r.Kind == probe.Liveness || r.Enough):
		return w, false
	case r.Kind == probe.Liveness && r.Last.IsZero():
		return w, false
	case r.Kind == probe.Readiness:
		w.Reason = notReady
		if r.Succeeded && !r.Enough {
			after = fmt.Sprintf("; after %d the container is not ready", r.Threshold)
		}
	default:
		w.Reason = notStarted
		if r.Kind == probe.Liveness {
			w.Reason = unhealthy
		}
		after = fmt.Sprintf("; after %d the container is restarted", r.Threshold)
	}
	every := fmt.Sprintf("; every %v", r.Period)
	switch {
	case r.Errored:
		w.Message = fmt.Sprintf("%s cannot be made: %s", kind, r.Output) + every
	case r.InRow == 0:
		w.Message = kind + " has not succeeded yet" + every
		w.Since = r.Began
	case r.OK:
		w.Message = fmt.Sprintf("%s succeeded %s, which is not enough", kind, times(r.InRow)) + every
	default:
		w.Message = fmt.Sprintf("%s failed %s in a row, last: %s", kind, times(r.InRow), cmp.Or(r.Output, "it said nothing")) + after + every
	}
	return w, true
}

func times(n int32) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// stuckIn finds the processes that keep a pod from ending.
func (a *Agent) stuckIn(l moment) (out []client.Wait) {
	if len(l.kills) == 0 || l.group == "" {
		return nil
	}
	pids, err := a.node.cgroups.hierarchy.Group(l.group).Procs()
	if err != nil {
		return nil // it is gone
	}
	for _, p := range stuck.Find("/proc", pids) {
		out = append(out, client.Wait{Reason: isStuck, Message: p.String()})
	}
	return out
}

// next tells what happens next: what comes first of what has a time, else what
// follows when the wait is over.
func next(waits []client.Wait, kills []killing, now time.Time) string {
	var at time.Time
	text := ""
	take := func(t time.Time, what string) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at, text = t, what
		}
	}
	for _, k := range kills {
		if k.until.After(now) {
			take(k.until, "kill "+k.container)
		}
	}
	for _, w := range waits {
		take(w.Until, again(w))
	}
	if text != "" {
		return text + " at " + at.Local().Format(time.TimeOnly) + sooner(waits, at)
	}
	for _, k := range kills {
		return k.container + " was killed; it ends when the kernel lets it"
	}
	for _, w := range waits {
		if text := afterwards(w); text != "" {
			return text
		}
	}
	return ""
}

// again is what is tried when a wait's time has come.
func again(w client.Wait) string {
	what := w.Container
	if what == "" {
		what = "the pod"
	}
	switch w.Reason {
	case "CrashLoopBackOff":
		return "restart " + what
	case image.ErrImagePull, image.ImagePullBackOff, image.RegistryUnavailable, image.SignatureValidationFailed:
		return "pull the image of " + what + " again"
	case failedMount:
		return "try the volumes of " + what + " again"
	case notReady:
		return "readiness probe of " + what
	case notStarted:
		return "startup probe of " + what
	case unhealthy:
		return "liveness probe of " + what
	}
	return "try " + what + " again"
}

// sooner tells when the wait that ends at t is over before its time.
func sooner(waits []client.Wait, t time.Time) string {
	for _, w := range waits {
		if w.Until.Equal(t) && retriedOnChange(w.Reason) {
			return ", or as soon as an object that the pod names changes"
		}
	}
	return ""
}

// afterwards is what follows a wait that has no time.
func afterwards(w client.Wait) string {
	switch {
	case strings.HasPrefix(w.Reason, "OutOf"), pinning.Refuses(w.Reason):
		return "start when there is room, the highest priority first"
	case w.Reason == nodePressure, w.Reason == insufficientDevices, w.Reason == priorityOrder:
		return "start as soon as that is over"
	case w.Reason == nodeShutdown:
		return "start after the reboot"
	case w.Reason == atGate:
		return "ready when somebody sets the condition"
	case w.Reason == plan.TargetNotRunning:
		return "start " + w.Container + " when its target runs"
	case w.Reason != inProgress:
		return ""
	case strings.HasPrefix(w.Message, string(plan.Prepare)):
		return "create the sandbox"
	case strings.HasPrefix(w.Message, string(plan.CreateSandbox)):
		return "start the containers"
	case strings.Contains(w.Message, ": pull "):
		return "create and start " + w.Container
	}
	return ""
}
