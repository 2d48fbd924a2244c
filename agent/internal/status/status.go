// Package status describes a pod as the Kubernetes API does, from what is
// wanted, seen and decided. It is pure; the pod's worker calls it after every
// change. Phases, conditions, reasons and their words are the kubelet's, because
// people and tools know them.
package status

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podstead/agent/internal/observe"
	"podstead/agent/internal/pinning"
	"podstead/agent/internal/plan"
	"podstead/agent/internal/request"
)

// Reasons of waiting containers.
const (
	ContainerCreating = "ContainerCreating"
	PodInitializing   = "PodInitializing"
)

// Input is all that a status depends on.
type Input struct {
	Pod       *corev1.Pod
	Seen      observe.Pod
	Probes    map[string]plan.Probe // by container ID
	Waits     map[string]plan.Wait  // of the plan
	Failures  map[string]plan.Failure
	Runtime   string // name of the container runtime, for container IDs
	HostIPs   []string
	StartTime time.Time
	// Starting are containers whose postStart hook has not ended.
	Starting map[string]bool
	// Over: nothing runs and no container will be started any more. Before that no
	// pod has failed or succeeded, whatever became of its containers.
	Over   bool
	Resize Resize
	// Devices tells how they are, by container.
	Devices map[string][]corev1.ResourceStatus
	// Conditions are what others than the node have set: by the agent's API here; in a
	// cluster, they would be those of the API server's pod.
	Conditions []corev1.PodCondition
	// Failed: the pod was failed as a whole, e.g. by its deadline.
	Failed *Failed
	Prev   *corev1.PodStatus // for transition times; may be nil
	Now    time.Time
}

// Resize is how far a change of cpu and memory is.
type Resize struct {
	// Pending is why the pod has not been given them: PodReasonDeferred or
	// PodReasonInfeasible.
	Pending, Message string
	InProgress       bool   // it was given them, and not all of it has them
	Error            string // what went wrong with that
}

// Failed says why.
type Failed struct {
	Reason, Message string
	// Disrupted, if not "": it was the node's doing, and that is what to say of it.
	Disrupted string
}

// Make makes the status.
func Make(in Input) corev1.PodStatus {
	m := maker{in}
	s := corev1.PodStatus{
		ObservedGeneration: in.Pod.Generation,
		QOSClass:           request.QoS(in.Pod),
	}
	if !in.StartTime.IsZero() {
		t := metav1.NewTime(in.StartTime)
		s.StartTime = &t
	}
	for _, ip := range in.HostIPs {
		s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: ip})
	}
	if len(in.HostIPs) > 0 {
		s.HostIP = in.HostIPs[0]
	}
	for _, ip := range PodIPs(in.Pod, in.Seen, in.HostIPs) {
		s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip})
	}
	if len(s.PodIPs) > 0 {
		s.PodIP = s.PodIPs[0].IP
	}
	for i := range in.Pod.Spec.InitContainers {
		s.InitContainerStatuses = append(s.InitContainerStatuses, m.container(&in.Pod.Spec.InitContainers[i], true))
	}
	for i := range in.Pod.Spec.Containers {
		s.ContainerStatuses = append(s.ContainerStatuses, m.container(&in.Pod.Spec.Containers[i], false))
	}
	for i := range in.Pod.Spec.EphemeralContainers {
		cs := m.container((*corev1.Container)(&in.Pod.Spec.EphemeralContainers[i].EphemeralContainerCommon), false)
		cs.Ready, cs.Started = false, nil // they are not asked
		s.EphemeralContainerStatuses = append(s.EphemeralContainerStatuses, cs)
	}
	s.Phase = m.phase(&s)
	if in.Failed != nil && in.Over {
		s.Phase, s.Reason, s.Message = corev1.PodFailed, in.Failed.Reason, in.Failed.Message
	}
	if w := in.Waits[""]; s.Phase == corev1.PodPending && (strings.HasPrefix(w.Reason, "OutOf") || pinning.Refuses(w.Reason)) {
		s.Reason, s.Message = w.Reason, w.Message
	}
	s.Conditions = m.conditions(&s)
	m.podResources(&s)
	return s
}

// PodIPs are a pod's addresses: its sandbox's, or the node's.
func PodIPs(pod *corev1.Pod, seen observe.Pod, hostIPs []string) []string {
	sandbox := seen.Sandbox()
	if sandbox == nil {
		return nil
	}
	if pod.Spec.HostNetwork {
		return hostIPs
	}
	return sandbox.IPs
}

type maker struct{ in Input }

func (m maker) container(spec *corev1.Container, init bool) corev1.ContainerStatus {
	c := m.in.Seen.Latest(spec.Name)
	no := false
	cs := corev1.ContainerStatus{Name: spec.Name, Image: spec.Image, Started: &no}
	if c == nil {
		cs.State.Waiting = m.waiting(spec)
		return cs
	}
	m.resources(&cs, spec, c)
	cs.VolumeMounts = m.volumeMounts(spec, c)
	cs.AllocatedResourcesStatus = m.in.Devices[spec.Name]
	cs.RestartCount = c.Restarts
	cs.ContainerID = m.id(c)
	if c.Image != "" && !strings.HasPrefix(c.Image, "sha256:") {
		cs.Image = c.Image
	}
	cs.ImageID = c.ImageID
	probe := m.in.Probes[c.ID]
	switch {
	case c.State == observe.Running && m.in.Starting[spec.Name]:
		cs.State.Waiting = m.waiting(spec)
		cs.LastTerminationState = m.terminated(m.in.Seen.Previous(spec.Name))
	case c.State == observe.Running:
		cs.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(c.Started)}
		cs.Started = &probe.Started
		cs.Ready = probe.Ready && (!init || plan.Sidecar(spec))
		cs.LastTerminationState = m.terminated(m.in.Seen.Previous(spec.Name))
	case c.State == observe.Created:
		cs.State.Waiting = m.waiting(spec)
		// It may never run and be made once more, with what was before it.
		if last := m.in.Seen.Previous(spec.Name); last != nil {
			cs.RestartCount = last.Restarts
			cs.LastTerminationState = m.terminated(last)
		} else {
			cs.RestartCount = min(c.Restarts, m.restartsShown(spec.Name))
		}
	case m.held(spec, c):
		cs.State.Waiting = m.waiting(spec)
		cs.LastTerminationState = m.terminated(c)
	default:
		cs.State = m.terminated(c)
		cs.LastTerminationState = m.terminated(m.in.Seen.Previous(spec.Name))
		cs.Ready = init && !plan.Sidecar(spec) && !c.Failed()
	}
	return cs
}

// held tells whether a dead container is kept from its next start. A failure
// from before its end is history: it ran after all, and so is any of one that is
// not to run again.
func (m maker) held(spec *corev1.Container, c *observe.Container) bool {
	if m.in.Over {
		return false // whatever failed is not tried again
	}
	_, wait := m.in.Waits[c.Name]
	f, failed := m.in.Failures[c.Name]
	return wait || failed && !f.At.Before(c.Finished) && plan.Restarts(m.in.Pod, spec, c.ExitCode, c.Failed())
}

func (m maker) waiting(spec *corev1.Container) *corev1.ContainerStateWaiting {
	if w, ok := m.in.Waits[spec.Name]; ok {
		return &corev1.ContainerStateWaiting{Reason: w.Reason, Message: w.Message}
	}
	// A failure stays what is to be seen while the next try is under way.
	if f, ok := m.in.Failures[spec.Name]; ok {
		return &corev1.ContainerStateWaiting{Reason: f.Reason, Message: f.Message}
	}
	if w := m.waited(spec.Name); m.in.Over && w != nil {
		return w // what it waited for when it all was over
	}
	if len(m.in.Pod.Spec.InitContainers) > 0 {
		return &corev1.ContainerStateWaiting{Reason: PodInitializing}
	}
	return &corev1.ContainerStateWaiting{Reason: ContainerCreating}
}

// waited is what a container waited for when the last status was made.
func (m maker) waited(name string) *corev1.ContainerStateWaiting {
	if c := m.before(name); c != nil {
		return c.State.Waiting
	}
	return nil
}

// restartsShown is how often a container was restarted by the last status.
func (m maker) restartsShown(name string) int32 {
	if c := m.before(name); c != nil {
		return c.RestartCount
	}
	return 0
}

// before is what the last status said of a container, nil if nothing.
func (m maker) before(name string) *corev1.ContainerStatus {
	if m.in.Prev == nil {
		return nil
	}
	for _, all := range [][]corev1.ContainerStatus{m.in.Prev.InitContainerStatuses, m.in.Prev.ContainerStatuses} {
		for i := range all {
			if all[i].Name == name {
				return &all[i]
			}
		}
	}
	return nil
}

func (m maker) id(c *observe.Container) string {
	if c.ID == "" {
		return ""
	}
	return m.in.Runtime + "://" + c.ID
}

func (m maker) terminated(c *observe.Container) corev1.ContainerState {
	if c == nil {
		return corev1.ContainerState{}
	}
	t := &corev1.ContainerStateTerminated{
		ExitCode: c.ExitCode, Reason: c.Reason, Message: c.Message, ContainerID: m.id(c),
		StartedAt: metav1.NewTime(c.Started), FinishedAt: metav1.NewTime(c.Finished),
	}
	if c.State == observe.Unknown {
		t.ExitCode, t.Reason = 137, "ContainerStatusUnknown"
		t.Message = "The container could not be located when the pod was terminated"
	}
	t.Message = m.fit(t.Message)
	if t.Reason == "" {
		t.Reason = "Completed"
		if t.ExitCode != 0 {
			t.Reason = "Error"
		}
	}
	return corev1.ContainerState{Terminated: t}
}

// maxMessages is what the termination messages of all containers of a pod may have
// together, as the kubelet has it.
const maxMessages = 12 << 10

// fit cuts off what exceeds a container's share of the messages.
func (m maker) fit(message string) string {
	s := &m.in.Pod.Spec
	share := maxMessages / max(1, len(s.InitContainers)+len(s.Containers)+len(s.EphemeralContainers))
	if len(message) > share {
		message = strings.ToValidUTF8(message[:share], "")
	}
	return message
}

func (m maker) phase(s *corev1.PodStatus) corev1.PodPhase {
	spec := &m.in.Pod.Spec
	for i, cs := range s.InitContainerStatuses {
		t, init := cs.State.Terminated, &spec.InitContainers[i]
		if m.in.Over && t != nil && t.ExitCode != 0 && !plan.Sidecar(init) && !plan.Restarts(m.in.Pod, init, t.ExitCode, true) {
			return corev1.PodFailed
		}
	}
	started := false
	for _, cs := range s.ContainerStatuses {
		started = started || cs.State.Waiting == nil || cs.LastTerminationState.Terminated != nil
	}
	if !started {
		return corev1.PodPending
	}
	var waiting, failed, going bool
	for i, cs := range s.ContainerStatuses {
		t := cs.State.Terminated
		if t == nil {
			t = cs.LastTerminationState.Terminated
		}
		switch {
		case cs.State.Running != nil:
			going = true
		case t == nil:
			waiting = true
		default:
			going = going || plan.Restarts(m.in.Pod, &spec.Containers[i], t.ExitCode, t.ExitCode != 0)
			failed = failed || t.ExitCode != 0
		}
	}
	switch {
	case waiting:
		return corev1.PodPending
	case going || !m.in.Over || m.in.Seen.Running():
		return corev1.PodRunning
	case failed:
		return corev1.PodFailed
	}
	return corev1.PodSucceeded
}

func (m maker) conditions(s *corev1.PodStatus) []corev1.PodCondition {
	list := []corev1.PodCondition{
		m.sandbox(s), m.initialized(s), m.ready(s),
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
	}
	list = slices.Insert(list, 2, m.gated(list[2], slices.Concat(list, m.in.Conditions)))
	if f := m.in.Failed; f != nil && f.Disrupted != "" {
		list = append(list, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue,
			Reason: corev1.PodReasonTerminationByKubelet, Message: f.Disrupted})
	}
	list = append(list, m.resize()...)
	for i := range list {
		list[i].ObservedGeneration = m.in.Pod.Generation
		list[i].LastTransitionTime = m.since(list[i])
	}
	return append(list, m.in.Conditions...)
}

// since keeps the time of a condition that did not change.
func (m maker) since(c corev1.PodCondition) metav1.Time {
	if m.in.Prev != nil {
		for _, old := range m.in.Prev.Conditions {
			if old.Type == c.Type && old.Status == c.Status {
				return old.LastTransitionTime
			}
		}
	}
	return metav1.NewTime(m.in.Now)
}

func condition(t corev1.PodConditionType, ok bool, reason, message string) corev1.PodCondition {
	c := corev1.PodCondition{Type: t, Status: corev1.ConditionTrue}
	if !ok {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, reason, message
	}
	return c
}

func (m maker) sandbox(s *corev1.PodStatus) corev1.PodCondition {
	sandbox := m.in.Seen.Sandbox()
	ok := sandbox != nil && sandbox.Ready && (m.in.Pod.Spec.HostNetwork || len(sandbox.IPs) > 0)
	return condition(corev1.PodReadyToStartContainers, ok, "", "")
}

func (m maker) initialized(s *corev1.PodStatus) corev1.PodCondition {
	if s.Phase == corev1.PodSucceeded {
		return corev1.PodCondition{Type: corev1.PodInitialized, Status: corev1.ConditionTrue, Reason: "PodCompleted"}
	}
	var open []string
	for i, cs := range s.InitContainerStatuses {
		done := cs.Ready
		if plan.Sidecar(&m.in.Pod.Spec.InitContainers[i]) {
			done = cs.Started != nil && *cs.Started
		}
		if !done {
			open = append(open, cs.Name)
		}
	}
	// Once the pod's containers ran, its initialization is behind it.
	for _, cs := range s.ContainerStatuses {
		if cs.State.Running != nil {
			open = nil
		}
	}
	return condition(corev1.PodInitialized, len(open) == 0, "ContainersNotInitialized",
		fmt.Sprintf("containers with incomplete status: [%s]", strings.Join(open, " ")))
}

func (m maker) ready(s *corev1.PodStatus) corev1.PodCondition {
	switch s.Phase {
	case corev1.PodSucceeded:
		return condition(corev1.ContainersReady, false, "PodCompleted", "")
	case corev1.PodFailed:
		return condition(corev1.ContainersReady, false, "PodFailed", "")
	}
	var unready, unknown []string
	for i, cs := range s.InitContainerStatuses {
		if plan.Sidecar(&m.in.Pod.Spec.InitContainers[i]) && !cs.Ready {
			unready = append(unready, cs.Name)
		}
	}
	for _, cs := range s.ContainerStatuses {
		if cs.ContainerID == "" && cs.State.Waiting == nil {
			unknown = append(unknown, cs.Name)
		} else if !cs.Ready {
			unready = append(unready, cs.Name)
		}
	}
	var text []string
	if len(unknown) > 0 {
		text = append(text, fmt.Sprintf("containers with unknown status: [%s]", strings.Join(unknown, " ")))
	}
	if len(unready) > 0 {
		text = append(text, fmt.Sprintf("containers with unready status: [%s]", strings.Join(unready, " ")))
	}
	return condition(corev1.ContainersReady, len(text) == 0, "ContainersNotReady", strings.Join(text, ", "))
}
