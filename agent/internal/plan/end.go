package plan

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"podstead/agent/internal/observe"
)

// end is the way of a pod that is to go: its containers get their grace,
// sidecars after the others and in reverse order, then the sandbox and what is
// left is removed.
func (p *planner) end() {
	deadline := p.in.End.At.Add(p.in.End.Grace)
	quiet := true
	for name, b := range p.in.Busy {
		// A runtime goes on making a sandbox that nobody waits for, and nobody
		// would see it come; hence that is waited for and then undone.
		if b.Kind == Start || b.Kind == Prepare {
			p.step(Step{Kind: Cancel, Container: name})
		}
		quiet = false
	}
	if p.stopAll(PodEnds, deadline) || !quiet {
		return
	}
	for _, s := range p.in.Seen.Sandboxes {
		if s.Ready {
			if !p.held("") {
				p.step(Step{Kind: StopSandbox, ID: s.ID})
			}
			return
		}
	}
	if p.in.End.Keep {
		if p.in.End.Free && p.in.Prepared {
			if !p.held("") {
				p.step(Step{Kind: Free})
			}
			return
		}
		p.plan.Finished = true
		return
	}
	p.removeAll()
}

// removeAll removes dead containers, then sandboxes, then the rest.
func (p *planner) removeAll() {
	if p.held("remove") || p.held("") {
		return
	}
	left := false
	for _, c := range p.in.Seen.Containers {
		if !c.Remembered {
			left = true
			p.step(Step{Kind: RemoveContainer, Container: c.Name, ID: c.ID})
		}
	}
	if left {
		return
	}
	for _, s := range p.in.Seen.Sandboxes {
		left = true
		p.step(Step{Kind: RemoveSandbox, ID: s.ID})
	}
	if left {
		return
	}
	if p.in.Prepared {
		p.step(Step{Kind: Teardown})
		return
	}
	p.plan.Gone = true
}

// stopAll ends the running containers in their order and tells whether any is
// left.
func (p *planner) stopAll(why Reason, deadline time.Time) (left bool) {
	for i := range p.in.Seen.Containers {
		c := &p.in.Seen.Containers[i]
		if c.State != observe.Running || p.isSidecar(c.Name) {
			continue
		}
		left = true
		p.stop(c, why, deadline)
	}
	// Who is being started may run by now, unseen.
	if left || slices.ContainsFunc(slices.Collect(maps.Values(p.in.Busy)), func(b Busy) bool { return b.Kind == Start }) {
		return true
	}
	inits := p.in.Pod.Spec.InitContainers
	for i := len(inits) - 1; i >= 0; i-- {
		if !Sidecar(&inits[i]) {
			continue
		}
		for j := range p.in.Seen.Containers {
			if c := &p.in.Seen.Containers[j]; c.Name == inits[i].Name && c.State == observe.Running {
				p.stop(c, why, deadline)
				return true
			}
		}
	}
	return false
}

func (p *planner) isSidecar(name string) bool {
	spec := p.spec(name)
	if spec == nil {
		return false
	}
	for i := range p.in.Pod.Spec.InitContainers {
		if &p.in.Pod.Spec.InitContainers[i] == spec {
			return Sidecar(spec)
		}
	}
	return false
}

// overtake is how much sooner a kill must end to take the place of another.
const overtake = time.Second

const sandboxChanged = "Pod sandbox changed, it will be killed and re-created."

// stop kills a container by the deadline. A kill under way that would take
// longer than is granted now is overtaken.
func (p *planner) stop(c *observe.Container, why Reason, deadline time.Time) {
	grace := deadline.Sub(p.now)
	if p.in.End == nil || p.in.End.Grace > 0 {
		grace = max(grace, MinGrace)
	}
	grace = max(grace, 0)
	if b, busy := p.in.Busy[c.Name]; busy && (b.Kind != Kill || !p.now.Add(grace+overtake).Before(b.Deadline)) {
		return
	}
	message := fmt.Sprintf("Stopping container %s", c.Name)
	if why == SandboxChanged {
		message = sandboxChanged
	}
	p.kill(c, why, message, grace)
}

// finish is the way of a pod that has run to its end: what still runs is
// ended, and the sandbox is stopped and with it the address given back.
func (p *planner) finish() {
	for name := range p.in.Busy {
		p.cancelStart(name)
	}
	if len(p.in.Busy) > 0 {
		return
	}
	if p.stopAll(PodFinished, p.now.Add(p.grace())) {
		return
	}
	for _, s := range p.in.Seen.Sandboxes {
		if s.Ready && !p.held("") {
			p.step(Step{Kind: StopSandbox, ID: s.ID})
			return
		}
	}
}

// collect removes what is not needed any more: of each container all dead
// instances but the newest, and one before it for `logs -p` unless the disk is
// full; old sandboxes, also one that a runtime went on making for an agent that
// was gone by then.
func (p *planner) collect() {
	if p.held("remove") {
		return
	}
	seen := map[string]int{}
	inUse := map[string]bool{}
	for i := range p.in.Seen.Containers {
		c := &p.in.Seen.Containers[i]
		seen[c.Name]++
		old := seen[c.Name] > 2 || (seen[c.Name] == 2 && (p.in.Tight || p.in.Seen.Latest(c.Name).Dead()))
		if c.Dead() && old && !p.busy(c.Name) && !c.Remembered {
			p.step(Step{Kind: RemoveContainer, Container: c.Name, ID: c.ID})
		}
		inUse[c.SandboxID] = true
	}
	for i, s := range p.in.Seen.Sandboxes {
		switch {
		case i == 0 || inUse[s.ID] || p.busy(""):
		case !s.Ready:
			p.step(Step{Kind: RemoveSandbox, ID: s.ID})
		case p.sandbox != nil && !p.held(""):
			p.step(Step{Kind: StopSandbox, ID: s.ID})
		}
	}
}
