package plan

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/observe"
)

// Sidecar tells whether an init container goes on running beside the others.
func Sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// Restarts tells whether a container is started again after it ended with a
// code: as the first of its rules says that matches, else its own restart
// policy, else the pod's. Failed is also who has vanished, whatever its code.
func Restarts(pod *corev1.Pod, c *corev1.Container, code int32, failed bool) bool {
	for _, r := range c.RestartPolicyRules {
		if e := r.ExitCodes; e != nil && slices.Contains(e.Values, code) == (e.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
			return r.Action == corev1.ContainerRestartRuleActionRestart
		}
	}
	policy := pod.Spec.RestartPolicy
	if c.RestartPolicy != nil {
		policy = corev1.RestartPolicy(*c.RestartPolicy)
	}
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return failed
	}
	return true
}

func (p *planner) restarts(spec *corev1.Container, c *observe.Container) bool {
	return Restarts(p.in.Pod, spec, c.ExitCode, c.Failed())
}

// edited tells whether an instance was made from another definition.
func (p *planner) edited(c *observe.Container) bool {
	want, ok := p.in.Hashes.Containers[c.Name]
	return ok && c.Hash != want
}

// ended tells whether a dead instance is the container's last: nothing in
// policy or definition asks for another.
func (p *planner) ended(spec *corev1.Container, c *observe.Container) bool {
	return c != nil && c.Dead() && !p.edited(c) && !p.restarts(spec, c) && !p.restartsResized(spec, c)
}

// finished tells whether the pod has run to its end: all its containers have
// ended for good, or an init container failed for good.
func (p *planner) finished() bool {
	if p.initFailed() {
		return true
	}
	for i := range p.in.Pod.Spec.Containers {
		spec := &p.in.Pod.Spec.Containers[i]
		if !p.ended(spec, p.in.Seen.Latest(spec.Name)) {
			return false
		}
	}
	return true
}

func (p *planner) initFailed() bool {
	if p.initialized() {
		return false
	}
	for i := range p.in.Pod.Spec.InitContainers {
		spec := &p.in.Pod.Spec.InitContainers[i]
		c := p.in.Seen.Latest(spec.Name)
		if c != nil && !Sidecar(spec) && c.Failed() && !p.edited(c) && !p.restarts(spec, c) {
			return true
		}
	}
	return false
}

// initialized tells whether the init containers are behind the pod: one of its
// containers was made in the sandbox in force.
func (p *planner) initialized() bool {
	for i := range p.in.Pod.Spec.Containers {
		if p.here(p.in.Seen.Latest(p.in.Pod.Spec.Containers[i].Name)) {
			return true
		}
	}
	return false
}

// initContainers takes the next step of the first that is not done, and tells
// whether the pod's other containers may run.
func (p *planner) initContainers() bool {
	behind := p.initialized()
	for i := range p.in.Pod.Spec.InitContainers {
		spec := &p.in.Pod.Spec.InitContainers[i]
		if Sidecar(spec) {
			if up := p.container(spec); !up && !behind {
				return false
			}
			continue
		}
		if behind {
			continue
		}
		c := p.in.Seen.Latest(spec.Name)
		if p.here(c) && c.State == observe.Exited && c.ExitCode == 0 && !p.edited(c) {
			continue
		}
		p.initContainer(spec, c)
		return false
	}
	return true
}

func (p *planner) initContainer(spec *corev1.Container, c *observe.Container) {
	switch {
	case p.busy(spec.Name):
	case p.here(c) && c.State == observe.Running:
		if p.edited(c) {
			p.kill(c, SpecChanged, changed(c.Name), p.grace())
		} else if p.resized(c).restarts(spec) {
			p.kill(c, Resized, resizeRestarts(c.Name), p.grace())
		}
	case p.here(c) && c.Dead():
		p.restart(spec, c)
	case c != nil && c.State == observe.Created:
		p.neverStarted(c)
	case c != nil && c.Dead() && !p.edited(c):
		p.start(spec, c, backoff(c)) // at once in a new sandbox, but the row of crashes goes on
	default:
		p.start(spec, c, 0)
	}
}

func changed(name string) string {
	return fmt.Sprintf("Container %s definition changed, will be restarted", name)
}

// container takes the next step of one that is to run, and tells whether it is
// up: running and past its startup probe.
func (p *planner) container(spec *corev1.Container) (up bool) {
	c := p.in.Seen.Latest(spec.Name)
	switch {
	case p.busy(spec.Name):
		return false
	case c == nil:
		p.start(spec, nil, 0)
	case c.State == observe.Running && p.here(c):
		return p.running(spec, c)
	case c.State == observe.Running: // of an earlier sandbox
		p.kill(c, SandboxChanged, sandboxChanged, p.grace())
	case c.State == observe.Created:
		p.neverStarted(c)
	case p.ended(spec, c):
	case p.edited(c), p.resized(c).any():
		p.start(spec, c, 0)
	default:
		p.restart(spec, c)
	}
	return false
}

// neverStarted removes an instance whose maker died meanwhile, or was told that
// it did not start: somebody might start it yet, beside another.
func (p *planner) neverStarted(c *observe.Container) {
	if s := (Step{Kind: RemoveContainer, Container: c.Name, ID: c.ID}); !p.held(s.FailureKey()) {
		p.step(s)
	}
}

func (p *planner) running(spec *corev1.Container, c *observe.Container) (up bool) {
	probe := p.in.Probes[c.ID]
	switch {
	case p.edited(c):
		p.kill(c, SpecChanged, changed(c.Name), p.grace())
	case p.resized(c).restarts(spec):
		p.kill(c, Resized, resizeRestarts(c.Name), p.grace())
	case probe.Failed != "":
		grace := p.grace()
		if probe.Grace != nil {
			grace = time.Duration(*probe.Grace) * time.Second
		}
		p.kill(c, Unhealthy, probe.Failed, grace)
	default:
		return probe.Started
	}
	return false
}

// backoff is what has to pass after the end of an instance.
func backoff(c *observe.Container) time.Duration {
	if c.Finished.Sub(c.Created) > BackoffReset {
		return 0
	}
	return c.Backoff
}

// CrashLoopBackOff is why a container waits for its next start.
const CrashLoopBackOff = "CrashLoopBackOff"

// restart starts a dead container again, after its back-off.
func (p *planner) restart(spec *corev1.Container, c *observe.Container) {
	delay := backoff(c)
	if until := c.Finished.Add(delay); delay > 0 && p.now.Before(until) {
		p.plan.Waits[c.Name] = Wait{
			Reason: CrashLoopBackOff,
			Message: fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)",
				delay, c.Name, p.in.Pod.Name, p.in.Pod.Namespace, p.in.Pod.UID),
			Since: c.Finished, Until: until,
		}
		p.wake(until)
		return
	}
	p.start(spec, c, delay)
}

// start starts an instance after last (nil: the first); delay is the back-off
// that preceded it.
func (p *planner) start(spec *corev1.Container, last *observe.Container, delay time.Duration) {
	if p.held(spec.Name) {
		return
	}
	if wait, late := p.in.Late[spec.Name]; late {
		p.plan.Waits[spec.Name] = wait
		return
	}
	if p.behind != "" {
		p.plan.Waits[spec.Name] = Wait{Reason: "ContainerCreating", Message: fmt.Sprintf("container %s starts before it, and has a postStart hook", p.behind)}
		return
	}
	if !p.in.Prepared {
		return
	}
	s := Step{Kind: Start, Container: spec.Name}
	if last != nil {
		s.Restarts = last.Restarts + 1
		if !p.edited(last) && !p.resized(last).any() && last.Dead() {
			s.Backoff = min(max(2*delay, cmp.Or(p.in.MinBackoff, BackoffStart)), cmp.Or(p.in.MaxBackoff, BackoffMax))
		}
	}
	p.step(s)
}
