package plan

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/observe"
)

// ResizeKey is under what a failed Resize is remembered.
const ResizeKey = "resize"

// difference is what is to be changed of a container's resources.
type difference struct{ from, to observe.Resources }

// resized compares what an instance has with what it is to have.
func (p *planner) resized(c *observe.Container) difference {
	to, ok := p.in.Hashes.Resources[c.Name]
	if !ok {
		to = c.Resources
	}
	return difference{c.Resources, to}
}

func (d difference) any() bool { return d.from != d.to }

// restarts tells whether the change takes a new instance: because the container
// says so, or because a limit goes away, for which runtimes have no word.
func (d difference) restarts(spec *corev1.Container) bool {
	if d.from.CPULimit != 0 && d.to.CPULimit == 0 || d.from.MemoryLimit != 0 && d.to.MemoryLimit == 0 {
		return true
	}
	for _, policy := range spec.ResizePolicy {
		if policy.RestartPolicy != corev1.RestartContainer {
			continue
		}
		switch policy.ResourceName {
		case corev1.ResourceCPU:
			if d.from.CPU() != d.to.CPU() {
				return true
			}
		case corev1.ResourceMemory:
			if d.from.Memory() != d.to.Memory() {
				return true
			}
		}
	}
	return false
}

func resizeRestarts(name string) string {
	return fmt.Sprintf("Container %s resize requires restart", name)
}

// restartsResized tells whether a container that ended to be resized is to be
// started again: always but where nothing is ever restarted.
func (p *planner) restartsResized(spec *corev1.Container, c *observe.Container) bool {
	policy := p.in.Pod.Spec.RestartPolicy
	if spec.RestartPolicy != nil {
		policy = corev1.RestartPolicy(*spec.RestartPolicy)
	}
	return policy != corev1.RestartPolicyNever && p.resized(c).restarts(spec)
}

// resize gives containers that run the cpu and memory that they are to have now,
// all in one step, since the pod's own group bounds them together.
func (p *planner) resize() {
	inPlace := p.in.PodResources != p.in.Hashes.PodResources
	for i := range p.in.Seen.Containers {
		c := &p.in.Seen.Containers[i]
		spec := p.spec(c.Name)
		if c.State != observe.Running || spec == nil || !p.here(c) || p.edited(c) {
			continue
		}
		if d := p.resized(c); d.any() {
			p.plan.Resizing = true
			inPlace = inPlace || !d.restarts(spec)
		}
	}
	p.plan.Resizing = p.plan.Resizing || inPlace
	if inPlace && p.in.Prepared && !p.busy("") && !p.held(ResizeKey) {
		p.step(Step{Kind: Resize})
	}
}
