package plan

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/observe"
)

// TargetNotRunning is why an ephemeral container waits for the container whose
// processes it is to see.
const TargetNotRunning = "TargetNotRunning"

// Find returns the container of a pod with that name, of whichever kind, nil if
// there is none.
func Find(pod *corev1.Pod, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	if e := FindEphemeral(pod, name); e != nil {
		return (*corev1.Container)(&e.EphemeralContainerCommon)
	}
	return nil
}

// FindEphemeral returns an ephemeral container of a pod, nil if there is none
// with that name.
func FindEphemeral(pod *corev1.Pod, name string) *corev1.EphemeralContainer {
	for i := range pod.Spec.EphemeralContainers {
		if e := &pod.Spec.EphemeralContainers[i]; e.Name == name {
			return e
		}
	}
	return nil
}

// ephemeralContainers starts those that were never started, also while init
// containers fail: to look into that they are there. None is started twice, not
// even if it failed, or if the sandbox in which it ran is gone.
func (p *planner) ephemeralContainers() {
	for i := range p.in.Pod.Spec.EphemeralContainers {
		e := &p.in.Pod.Spec.EphemeralContainers[i]
		c := p.in.Seen.Latest(e.Name)
		if p.busy(e.Name) {
			continue
		}
		if c != nil {
			if c.State == observe.Created {
				p.step(Step{Kind: RemoveContainer, Container: c.Name, ID: c.ID})
			}
			continue
		}
		if t := e.TargetContainerName; t != "" {
			target := p.in.Seen.Latest(t)
			if !p.here(target) || target.State != observe.Running {
				p.plan.Waits[e.Name] = Wait{Reason: TargetNotRunning, Message: fmt.Sprintf("container %s, whose processes it is to see, does not run", t)}
				continue
			}
		}
		p.start((*corev1.Container)(&e.EphemeralContainerCommon), nil, 0)
	}
}
