package agent

import (
	"context"
	"slices"
	"strings"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/simtest"
)

// manifest makes up a pod, some of which have readiness gates.
func (s *story) manifest(name string) string {
	text := s.guaranteed(name, manifest(s.world, name))
	if !s.gates || s.world.Roll(2, "gates", name) == 0 {
		return text
	}
	list := []string{"{conditionType: a/one}", "{conditionType: two}"}[:1+s.world.Roll(2, "two gates", name)]
	return strings.Replace(text, "spec:\n", "spec:\n  readinessGates: ["+strings.Join(list, ", ")+"]\n", 1)
}

// turnGates sets a condition of a pod, whether one of its gates names it or not.
func (s *story) turnGates() {
	w := s.world
	for _, name := range []string{"p0", "p1"}[:storyPods] {
		if w.Roll(2, "condition", name) == 0 {
			kind := simtest.Gates()[w.Roll(2, "which condition", name)]
			status := []corev1.ConditionStatus{corev1.ConditionTrue, corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionUnknown}
			s.turnGate(name, kind, status[w.Roll(4, "status", name)])
		}
	}
}

func (s *story) turnGate(pod string, kind corev1.PodConditionType, status corev1.ConditionStatus) {
	uid := s.uids[pod]
	s.world.Setting(uid, kind, status)
	err := (backend{s.agent}).SetCondition(context.Background(), "default", pod, corev1.PodCondition{Type: kind, Status: status})
	synctest.Wait() // for what was told before
	if err == nil {
		s.world.Set(uid, kind, status)
	}
}

// openGates has all pods become ready some time: those that begin anew do so before
// faults stop, or right then.
func (s *story) openGates() {
	s.after(16 * time.Minute)
	for _, p := range s.agent.board.list() {
		for _, g := range p.Spec.ReadinessGates {
			s.turnGate(p.Name, g.ConditionType, corev1.ConditionTrue)
		}
	}
}

// stillClosed tells whether a pod is not ready although all that it waited for is
// there.
func (s *story) stillClosed(p *corev1.Pod) bool {
	completed := slices.ContainsFunc(p.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool { return !c.Ready })
	return !completed && !slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}
