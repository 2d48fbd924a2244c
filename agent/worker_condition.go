package agent

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"podstead/agent/client"
	"podstead/agent/internal/plan"
	"podstead/agent/internal/status"
)

// conditions are those of a pod that others than the node have set. They are of
// the pod as it was then: one that begins anew, with another sandbox or after it
// had failed, has to earn them again.
type conditions struct {
	Sandbox string // plan.Hashes.Sandbox
	List    []corev1.PodCondition
}

// of are the conditions that still hold for a definition.
func (c conditions) of(h plan.Hashes) conditions {
	if c.Sandbox != h.Sandbox {
		return conditions{}
	}
	return c
}

// setCondition sets a condition, until the pod is gone or begins anew: it is in the
// record, so that a later agent knows it.
func (w *worker) setCondition(c corev1.PodCondition, now time.Time) error {
	if err := checkCondition(c); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	c.ObservedGeneration, c.LastProbeTime, c.LastTransitionTime = 0, metav1.Time{}, metav1.NewTime(now)
	list := slices.Clone(w.set.List)
	i := slices.IndexFunc(list, func(old corev1.PodCondition) bool { return old.Type == c.Type })
	if i < 0 {
		i, list = len(list), append(list, c)
	}
	if list[i].Status == c.Status {
		c.LastTransitionTime = list[i].LastTransitionTime
	}
	list[i] = c
	w.set = conditions{Sandbox: w.hashes.Sandbox, List: list}
	w.save()
	return nil
}

func checkCondition(c corev1.PodCondition) error {
	if status.Own(c.Type) {
		return fmt.Errorf("condition type %q: it is the node's own to set", c.Type)
	}
	if bad := validation.IsQualifiedName(string(c.Type)); len(bad) > 0 {
		return fmt.Errorf("condition type %q: %s", c.Type, bad[0])
	}
	switch c.Status {
	case corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionUnknown:
		return nil
	}
	return fmt.Errorf("condition %s: status %q is not True, False or Unknown", c.Type, c.Status)
}

// gates are the conditions that keep a pod from being ready.
func (w *worker) gates() (out []client.Wait) {
	if !w.seen.Running() || w.ending != nil {
		return nil
	}
	for _, g := range status.Closed(w.pod, w.status.Conditions) {
		wait := client.Wait{Reason: atGate, Message: g.Why, Since: g.Since}
		if !status.Own(g.Type) {
			wait.Message = strings.TrimSuffix(g.Why, ".") + fmt.Sprintf("; set it with: podstead condition %s -n %s %s=True", w.pod.Name, w.pod.Namespace, g.Type)
		}
		out = append(out, wait)
	}
	return out
}
