// Package plan decides what a pod needs next. Next is a pure function of what
// is wanted, what is seen and the time: it touches nothing and remembers
// nothing, so every decision can be written as a line of a table and replayed.
// The pod's worker calls it after every change and carries the steps out.
package plan

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/observe"
)

// The restart back-off, as the kubelet has it: an instance's first death is
// followed by a restart at once, the next by 10 s, 20 s, … 5 min; who ran longer
// than 10 min begins anew.
const (
	BackoffStart = 10 * time.Second
	BackoffMax   = 5 * time.Minute
	BackoffReset = 10 * time.Minute
)

// MinGrace is what a container gets between TERM and KILL, however little of
// the pod's grace period is left.
const MinGrace = 2 * time.Second

// Kind of a step.
type Kind string

// The steps. All but Cancel run beside each other if they are of different
// containers; the pod's own steps have Container "".
const (
	Prepare         Kind = "prepare"          // volumes, cgroup, directories
	CreateSandbox   Kind = "create sandbox"   // Attempt
	StopSandbox     Kind = "stop sandbox"     // ID
	RemoveSandbox   Kind = "remove sandbox"   // ID; its containers are gone
	Start           Kind = "start"            // Container, Restarts, Backoff
	Kill            Kind = "kill"             // Container, ID, Reason, Message, Grace
	RemoveContainer Kind = "remove container" // Container, ID
	Cancel          Kind = "cancel"           // end the step of Container that is under way
	Free            Kind = "free"             // what an evicted pod held on the node
	Resize          Kind = "resize"           // give what runs the cpu and memory that it has now
	Teardown        Kind = "tear down"        // all that Prepare made, and the logs
)

// Step is one thing to do.
type Step struct {
	Kind      Kind
	Container string
	ID        string
	Attempt   uint32
	Restarts  int32
	// Backoff is written on the instance: the delay that follows its death.
	Backoff time.Duration
	Grace   time.Duration
	Reason  Reason
	Message string // for the Killing event
}

// FailureKey is under what a failure of the step is remembered: a container
// whose image cannot be pulled can still be killed.
func (s Step) FailureKey() string {
	switch s.Kind {
	case Kill:
		return "kill " + s.Container
	case RemoveContainer, RemoveSandbox:
		return "remove"
	case Resize:
		return ResizeKey
	}
	return s.Container
}

func (s Step) String() string {
	out := string(s.Kind)
	if s.Container != "" {
		out += " " + s.Container
	}
	if s.ID != "" {
		out += " " + s.ID
	}
	return out
}

// Reason says why a container is killed.
type Reason string

// Reasons for a kill.
const (
	SandboxChanged Reason = "sandbox changed"
	SpecChanged    Reason = "definition changed"
	Unhealthy      Reason = "probe failed"
	PodEnds        Reason = "pod ends"
	PodFinished    Reason = "pod finished"
	Unwanted       Reason = "not in the pod any more"
	Resized        Reason = "resources changed"
)

// Hashes identify what containers and the sandbox are made from: another hash
// means that it is to be made anew.
type Hashes struct {
	Sandbox    string
	Containers map[string]string
	// Resources are what containers are to have of cpu and memory, and PodResources
	// the pod's own group: those are changed in place.
	Resources    map[string]observe.Resources
	PodResources observe.Resources
}

// Probe is what the probes say of one running container.
type Probe struct {
	Started bool // its startup probe succeeded, or it has none
	Ready   bool
	// Failed, if not "", says why the container is to be killed.
	Failed string
	Grace  *int64 // seconds, of the probe that failed; nil: the pod's
}

// Failure is a step that failed and is to be tried again at Until.
type Failure struct {
	Reason, Message string
	At, Until       time.Time
}

// Busy is a step under way.
type Busy struct {
	Kind Kind
	// Deadline is when a Kill in flight stops being gentle.
	Deadline time.Time
}

// End says that the pod is to end, and how.
type End struct {
	At    time.Time
	Grace time.Duration
	// Keep leaves containers and logs behind, stopped, to be looked at: a pod
	// that failed its deadline ends so, a deleted one does not.
	Keep bool
	// Free gives back what the pod held once it is stopped; then it counts as not
	// Prepared. For a pod that is kept.
	Free bool
}

// Input is all that the decision depends on.
type Input struct {
	Pod    *corev1.Pod
	Hashes Hashes
	Seen   observe.Pod
	// Prepared: volumes, cgroup and directories are in place.
	Prepared   bool
	Probes     map[string]Probe   // by container ID
	Failures   map[string]Failure // by Step.FailureKey
	Busy       map[string]Busy    // by container name, "" for the pod's own steps
	End        *End
	MinBackoff time.Duration // 0: BackoffStart
	MaxBackoff time.Duration // 0: BackoffMax
	// PodResources are what the pod's own group has.
	PodResources observe.Resources
	// Tight: the disk is full, and dead containers that are kept only to be looked
	// at are removed.
	Tight bool
	// Hold, if not nil, keeps a pod of which nothing was started yet from starting.
	Hold *Wait
	// Late are containers that were added to a running pod, and have to wait.
	Late map[string]Wait
	// StartTime is when the pod was first seen, for activeDeadlineSeconds.
	StartTime time.Time
}

// Wait says why a container is not running and not being started.
type Wait struct {
	Reason, Message string
	Since, Until    time.Time
}

// Plan is the decision.
type Plan struct {
	Steps []Step
	// Wake is when to ask again if nothing happens before; zero: not at all.
	Wake  time.Time
	Waits map[string]Wait // by container name, "" for the pod
	// Finished: no container is to run any more (Succeeded or Failed).
	Finished bool
	// Resizing: not all of the pod has the cpu and memory yet that it is to have.
	Resizing bool
	// DeadlineExceeded: the pod is to be failed by its activeDeadlineSeconds.
	DeadlineExceeded bool
	// Gone: the pod has ended and nothing of it is left.
	Gone bool
}

// Next decides.
func Next(in Input, now time.Time) Plan {
	p := &planner{in: in, now: now, plan: Plan{Waits: map[string]Wait{}}}
	p.current()
	switch {
	case in.End != nil:
		p.end()
	case p.deadline():
	default:
		p.run()
	}
	return p.plan
}

type planner struct {
	in   Input
	now  time.Time
	plan Plan
	// sandbox is the one that containers are to run in, nil if it is to be made.
	sandbox *observe.Sandbox
	// behind is a container with a postStart hook that is being started. Those after
	// it in the pod start when its hook has ended, as with a kubelet, which takes them
	// one by one: service meshes hold an application up so until its proxy is there.
	behind string
}

func (p *planner) step(s Step) {
	p.plan.Steps = append(p.plan.Steps, s)
}

// wake asks to be called again at t at the latest.
func (p *planner) wake(t time.Time) {
	if p.plan.Wake.IsZero() || t.Before(p.plan.Wake) {
		p.plan.Wake = t
	}
}

func (p *planner) busy(container string) bool {
	_, ok := p.in.Busy[container]
	return ok
}

// held tells whether a failed step is to wait, and notes the wait.
func (p *planner) held(container string) bool {
	f, ok := p.in.Failures[container]
	if !ok {
		return false
	}
	if !p.now.Before(f.Until) {
		return false
	}
	p.plan.Waits[container] = Wait{Reason: f.Reason, Message: f.Message, Since: f.At, Until: f.Until}
	p.wake(f.Until)
	return true
}

// current finds the sandbox in force: the newest, if it is ready and made from
// what is wanted now.
func (p *planner) current() {
	if s := p.in.Seen.Sandbox(); s != nil && s.Ready && s.Hash == p.in.Hashes.Sandbox {
		p.sandbox = s
	}
}

// here tells whether a container is in the sandbox in force.
func (p *planner) here(c *observe.Container) bool {
	return p.sandbox != nil && c != nil && c.SandboxID == p.sandbox.ID
}

func (p *planner) deadline() bool {
	limit := p.in.Pod.Spec.ActiveDeadlineSeconds
	if limit == nil || p.in.StartTime.IsZero() || p.finished() {
		return false
	}
	at := p.in.StartTime.Add(time.Duration(*limit) * time.Second)
	if p.now.Before(at) {
		p.wake(at)
		return false
	}
	p.plan.DeadlineExceeded = true
	return true
}

// run is the way of a pod that is wanted.
func (p *planner) run() {
	defer p.collect()
	if p.in.Busy[""].Kind == StopSandbox {
		p.plan.Finished = p.finished()
		return // even if it is wanted by now: it is as good as gone
	}
	p.killUnwanted()
	if p.finished() {
		p.plan.Finished = true
		p.finish()
		return
	}
	if p.in.Hold != nil && !p.in.Seen.Present() && !p.busy("") {
		p.plan.Waits[""] = *p.in.Hold
		return
	}
	if !p.in.Prepared {
		if !p.busy("") && !p.held("") {
			p.step(Step{Kind: Prepare})
		}
		if p.sandbox == nil {
			return // what runs already goes on meanwhile
		}
	}
	if p.sandbox == nil {
		p.makeSandbox()
		return
	}
	p.resize()
	p.ephemeralContainers()
	if !p.initContainers() {
		return
	}
	for i := range p.in.Pod.Spec.Containers {
		spec := &p.in.Pod.Spec.Containers[i]
		p.container(spec)
		if p.behind == "" && HasPostStart(spec) && p.starting(spec.Name) {
			p.behind = spec.Name
		}
	}
}

// HasPostStart tells whether a container counts as started only when its hook has
// ended: until then it is neither shown as running nor probed.
func HasPostStart(spec *corev1.Container) bool {
	return spec != nil && spec.Lifecycle != nil && spec.Lifecycle.PostStart != nil
}

// starting tells whether a container is being started, or is to be now.
func (p *planner) starting(name string) bool {
	return p.in.Busy[name].Kind == Start ||
		slices.ContainsFunc(p.plan.Steps, func(s Step) bool { return s.Kind == Start && s.Container == name })
}

// killUnwanted ends containers whose name is not in the pod (any more).
func (p *planner) killUnwanted() {
	for i := range p.in.Seen.Containers {
		c := &p.in.Seen.Containers[i]
		if c.State == observe.Running && p.spec(c.Name) == nil && !p.busy(c.Name) {
			p.kill(c, Unwanted, fmt.Sprintf("Container %s is not in the pod any more, stopping it", c.Name), p.grace())
		}
	}
}

func (p *planner) spec(name string) *corev1.Container { return Find(p.in.Pod, name) }

func (p *planner) grace() time.Duration {
	return time.Duration(*p.in.Pod.Spec.TerminationGracePeriodSeconds) * time.Second
}

func (p *planner) kill(c *observe.Container, why Reason, message string, grace time.Duration) {
	s := Step{Kind: Kill, Container: c.Name, ID: c.ID, Reason: why, Message: message, Grace: grace}
	if !p.held(s.FailureKey()) {
		p.step(s)
	}
}

// makeSandbox ends what is left of an old sandbox, in the order in which a pod
// ends, and then makes a new one.
func (p *planner) makeSandbox() {
	for name := range p.in.Busy { // also of containers that are not seen yet
		p.cancelStart(name)
	}
	if p.stopAll(SandboxChanged, p.now.Add(p.grace())) || len(p.in.Busy) > 0 {
		return
	}
	attempt := uint32(0)
	for _, s := range p.in.Seen.Sandboxes {
		if s.Ready {
			p.step(Step{Kind: StopSandbox, ID: s.ID})
			return
		}
		attempt = max(attempt, s.Attempt+1)
	}
	if !p.held("") {
		p.step(Step{Kind: CreateSandbox, Attempt: attempt})
	}
}

// cancelStart ends a start under way and tells whether there was one.
func (p *planner) cancelStart(name string) bool {
	b, ok := p.in.Busy[name]
	if !ok || b.Kind != Start {
		return false
	}
	p.step(Step{Kind: Cancel, Container: name})
	return true
}
