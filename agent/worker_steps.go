package agent

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/client"
	"podstead/agent/internal/flight"
	"podstead/agent/internal/image"
	"podstead/agent/internal/observe"
	"podstead/agent/internal/plan"
	"podstead/agent/internal/probe"
	"podstead/agent/internal/request"
	"podstead/cri/tracing"
)

// Reasons of failures, beside those of package image.
const (
	failedMount              = "FailedMount"
	failedCreatePodContainer = "FailedCreatePodContainer"
	failedCreatePodSandbox   = "FailedCreatePodSandBox"
	failedKillPod            = "FailedKillPod"
	createConfigError        = "CreateContainerConfigError"
	createError              = "CreateContainerError"
	runError                 = "RunContainerError"
	postStartError           = "PostStartHookError"
	killError                = "KillContainerError"
)

// retriedOnChange tells whether a failure may go away when an object changes.
func retriedOnChange(reason string) bool {
	switch reason {
	case failedMount, createConfigError, image.ErrImagePull, image.ImagePullBackOff, image.ErrImageNeverPull, image.RegistryUnavailable:
		return true
	}
	return false
}

var errPodEnds = errors.New("the pod has ended or is ending")

// stepError is a failed step: reason and message as a container's waiting state
// has them.
type stepError struct{ reason, message string }

// err is nil if the step is.
func (e *stepError) err() error {
	if e == nil {
		return nil
	}
	return errors.New(e.reason + ": " + e.message)
}

// reasonOf is "" if the step has not failed.
func (e *stepError) reasonOf() string {
	if e == nil {
		return ""
	}
	return e.reason
}

func failedStep(reason string, err error) *stepError {
	return &stepError{reason, err.Error()}
}

// launch starts a step, unless its container has one under way already.
func (w *worker) launch(ctx context.Context, s plan.Step) {
	if s.Kind == plan.Cancel {
		if r := w.busy[s.Container]; r != nil {
			r.stopped = true
			r.cancel()
		}
		return
	}
	if r := w.busy[s.Container]; r != nil {
		if s.Kind != plan.Kill || r.step.Kind != plan.Kill {
			return
		}
		r.stopped = true
		r.cancel() // overtaken by a shorter grace
	}
	if w.idle(s) {
		return
	}
	ctx = w.inTrace(ctx)
	life := ctx
	ctx, cancel := context.WithCancel(ctx)
	run := &running{step: s, cancel: cancel}
	if s.Kind == plan.Kill {
		run.until = time.Now().Add(s.Grace)
	}
	w.busy[s.Container] = run
	j := w.job(s)
	run.job = &j
	j.life = flight.With(life, w.flight, s.Container)
	w.steps.Go(func() {
		defer cancel()
		ctx, end := flight.Begin(flight.With(ctx, w.flight, s.Container), client.FlightStep, string(s.Kind))
		j.life = tracing.With(j.life, ctx)
		began := time.Now()
		r := result{run: run, failed: j.run(ctx)}
		end(r.failed.err())
		j.count(time.Since(began), r.failed == nil)
		select {
		case w.results <- r:
		case <-w.quit:
		}
	})
}

// noEffect is how soon a step that succeeded may be asked for again; a runtime
// that says yes and does nothing must not make the agent spin.
const noEffect = 100 * time.Millisecond

// identity tells a step from the one that follows when it had its effect.
func identity(s plan.Step) string { return fmt.Sprint(s, s.Attempt, s.Restarts) }

// idle holds back a step that has only just succeeded.
func (w *worker) idle(s plan.Step) bool {
	now := time.Now()
	if at, ok := w.finished[identity(s)]; !ok || s.Kind == plan.Prepare || now.Sub(at) > noEffect {
		return false
	}
	delete(w.finished, identity(s))
	w.failures[s.FailureKey()] = plan.Failure{Reason: "NoEffect", At: now, Until: now.Add(time.Second),
		Message: s.String() + " succeeded and changed nothing"}
	w.dirty = true
	w.poke()
	return true
}

// done takes in what became of a step.
func (w *worker) done(r result) {
	s := r.run.step
	if w.busy[s.Container] == r.run {
		delete(w.busy, s.Container)
	}
	w.dirty = true
	w.changed(r)
	key := s.FailureKey()
	if r.failed != nil && r.run.stopped {
		return // by ourselves
	}
	if r.failed == nil {
		delete(w.failures, key)
		delete(w.tries, key)
		delete(w.troubled, key)
		w.succeeded(s)
		return
	}
	w.tries[key]++
	now := time.Now()
	if _, ok := w.troubled[key]; !ok {
		w.troubled[key] = now
	}
	w.failures[key] = plan.Failure{Reason: r.failed.reason, Message: r.failed.message, At: now, Until: now.Add(delay(r.failed.reason, w.tries[key]))}
}

// changed takes in what a step has changed of resources, whole or in part.
func (w *worker) changed(r result) {
	j := r.run.job
	switch {
	case r.run.step.Kind == plan.Resize:
		for id, to := range j.resizing.done {
			if c, ok := w.known[id]; ok {
				c.Resources = to
				w.known[id] = c
			}
		}
		if r.failed == nil {
			w.group = request.PodAmounts(j.pod)
		}
	case r.run.step.Kind == plan.Prepare && r.failed == nil && !j.live:
		w.group = request.PodAmounts(j.pod)
	}
}

func (w *worker) succeeded(s plan.Step) {
	clear(w.finished)
	w.finished[identity(s)] = time.Now()
	switch s.Kind {
	case plan.Prepare:
		w.prepared, w.stale = true, false
	case plan.Teardown, plan.Free:
		w.prepared = false
	case plan.RemoveContainer:
		// A container's last instance is remembered, in an ending pod, too, and if it
		// ran in spite of all when it was removed as never started.
		if c := w.seen.Latest(s.Container); c == nil || c.ID != s.ID {
			delete(w.known, s.ID)
		}
	}
}

// delay is the wait after the n-th failure in a row.
func delay(reason string, n int) time.Duration {
	first, most := time.Second, time.Minute
	switch reason {
	case postStartError:
		return 0 // the container was killed, and waits for its restart as after any other end
	case image.ErrImagePull, image.RegistryUnavailable, image.SignatureValidationFailed:
		first, most = plan.BackoffStart, plan.BackoffMax
	case image.ErrImageNeverPull, createConfigError, createError, runError, image.InvalidImageName, image.ImageInspectError:
		first = plan.BackoffStart
	}
	d := first
	for range n - 1 {
		if d *= 2; d >= most {
			return most
		}
	}
	return d
}

// pullNews is how long a failed pull shows as such before it shows as back-off.
const pullNews = 2 * time.Second

// backoffNews turns failed pulls into back-offs when they are old enough, and
// tells when the next will be.
func (w *worker) backoffNews(now time.Time) (next time.Time) {
	for key, f := range w.failures {
		switch f.Reason {
		case image.ErrImagePull, image.RegistryUnavailable, image.SignatureValidationFailed:
		default:
			continue
		}
		at := f.At.Add(pullNews)
		if now.Before(at) {
			if next.IsZero() || at.Before(next) {
				next = at
			}
			continue
		}
		spec := w.spec(key)
		if spec == nil {
			continue
		}
		message := fmt.Sprintf("Back-off pulling image %q", spec.Image)
		w.node.event(w.pod, key, corev1.EventTypeNormal, "BackOff", "%s", message)
		w.node.event(w.pod, key, corev1.EventTypeWarning, "Failed", "Error: %s", image.ImagePullBackOff)
		f.Reason, f.Message = image.ImagePullBackOff, message+": "+f.Reason+": "+f.Message
		w.failures[key] = f
		w.poke() // to describe it
	}
	return next
}

// tellBackoffs makes an event of each wait for a restart.
func (w *worker) tellBackoffs() {
	for name, wait := range w.last.Waits {
		if wait.Reason != plan.CrashLoopBackOff || w.told[name].Equal(wait.Until) {
			continue
		}
		w.told[name] = wait.Until
		w.node.event(w.pod, name, corev1.EventTypeWarning, "BackOff", "Back-off restarting failed container %s in pod %s_%s(%s)",
			name, w.pod.Name, w.pod.Namespace, w.uid)
	}
}

// refreshVolumes brings files up to date after objects changed.
func (w *worker) refreshVolumes(ctx context.Context) {
	if !w.stale || !w.prepared || w.ending != nil || w.busy[""] != nil {
		return
	}
	w.stale = false
	w.launch(ctx, plan.Step{Kind: plan.Prepare})
}

// job is a step with all that it needs: it runs beside the worker and touches
// nothing of it.
type job struct {
	*node
	// life is the agent's: a step that is canceled waits for what it must know.
	life    context.Context
	step    plan.Step
	pod     *corev1.Pod
	spec    *corev1.Container
	objs    objects
	sandbox *observe.Sandbox
	ips     []string
	target  func(id string) probe.Target
	dead    []string // containers to be removed by Free
	// processes is the ID of the container whose processes an ephemeral one sees.
	processes string
	leaving   *atomic.Bool // the worker's
	live      bool         // there is a sandbox in force
	resizing  *resizing
	first     bool   // the pod has not run yet
	pulls     *pulls // of its first start; may be nil
}

func (w *worker) job(s plan.Step) job {
	j := job{node: w.node, step: s, pod: w.pod, spec: w.spec(s.Container), objs: w.objs, leaving: &w.leaving, pulls: w.pulls,
		first: w.status.Phase == corev1.PodPending || w.status.Phase == ""}
	switch s.Kind {
	case plan.Free:
		j.dead = w.dead()
	case plan.Resize:
		j.resizing = w.resizes()
	}
	if e := plan.FindEphemeral(w.pod, s.Container); e != nil {
		if t := w.seen.Latest(e.TargetContainerName); t != nil {
			j.processes = t.ID
		}
	}
	if sb := w.seen.Sandbox(); sb != nil {
		c := *sb
		j.sandbox = &c
		j.live = sb.Ready && sb.Hash == w.hashes.Sandbox
		j.ips = sb.IPs
		if w.pod.Spec.HostNetwork {
			j.ips = w.node.hostIPs
		}
	}
	if j.spec != nil {
		spec, ip := j.spec, ""
		if len(j.ips) > 0 {
			ip = j.ips[0]
		}
		j.target = func(id string) probe.Target {
			return probe.Target{Spec: spec, PodIP: ip, Exec: w.node.exec(id)}
		}
	}
	return j
}

// count notes a step in the kubelet's words.
func (j job) count(took time.Duration, ok bool) {
	what := "sync"
	switch j.step.Kind {
	case plan.Resize:
		what = "update"
		j.metrics.Resized(took, ok)
	case plan.Kill, plan.StopSandbox, plan.RemoveSandbox, plan.RemoveContainer, plan.Teardown, plan.Free:
		what = "kill"
	default:
		if j.first {
			what = "create"
		}
	}
	j.metrics.Worked(what, took)
}

func (j job) run(ctx context.Context) *stepError {
	switch j.step.Kind {
	case plan.Prepare:
		return j.prepare(ctx)
	case plan.CreateSandbox:
		return j.createSandbox(ctx)
	case plan.StopSandbox:
		return j.stopSandbox(ctx)
	case plan.RemoveSandbox:
		return j.removeSandbox(ctx)
	case plan.Start:
		return j.startContainer(ctx)
	case plan.Kill:
		return j.killContainer(ctx)
	case plan.RemoveContainer:
		return j.removeContainer(ctx)
	case plan.Teardown:
		return j.teardown(ctx)
	case plan.Resize:
		return j.resize(ctx)
	case plan.Free:
		return j.free(ctx)
	}
	return failedStep("Unknown", errors.New("step "+string(j.step.Kind)+" is not known"))
}
