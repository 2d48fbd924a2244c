package status

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// readinessGatesNotReady is the kubelet's reason for a pod whose containers are
// ready and which is not.
const readinessGatesNotReady = "ReadinessGatesNotReady"

// Own tells whether a condition is the node's to set, and nobody else's.
func Own(t corev1.PodConditionType) bool {
	switch t {
	case corev1.PodScheduled, corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady,
		corev1.DisruptionTarget, corev1.PodResizePending, corev1.PodResizeInProgress:
		return true
	}
	return false
}

// Gate is a readiness gate of a pod whose condition is not true.
type Gate struct {
	Type  corev1.PodConditionType
	Why   string    // in the kubelet's words
	Since time.Time // zero if the condition is not there
}

// Closed are the gates of a pod that keep it from being ready.
func Closed(pod *corev1.Pod, conditions []corev1.PodCondition) (closed []Gate) {
	for _, g := range pod.Spec.ReadinessGates {
		gate := Gate{Type: g.ConditionType, Why: fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", g.ConditionType)}
		for _, c := range conditions {
			if c.Type == g.ConditionType {
				gate.Why = fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", g.ConditionType, c.Status)
				gate.Since = c.LastTransitionTime.Time
				if c.Status == corev1.ConditionTrue {
					gate.Why = ""
				}
			}
		}
		if gate.Why != "" {
			closed = append(closed, gate)
		}
	}
	return closed
}

// gated makes the condition Ready, of the containers' and those that gates name.
func (m maker) gated(containers corev1.PodCondition, all []corev1.PodCondition) corev1.PodCondition {
	ready := containers
	ready.Type = corev1.PodReady
	if ready.Status != corev1.ConditionTrue {
		return ready
	}
	var text []string
	for _, g := range Closed(m.in.Pod, all) {
		text = append(text, g.Why)
	}
	return condition(corev1.PodReady, len(text) == 0, readinessGatesNotReady, strings.Join(text, ", "))
}
