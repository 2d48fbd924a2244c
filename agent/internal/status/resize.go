package status

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"podstead/agent/internal/observe"
	"podstead/agent/internal/request"
)

// resize are the conditions of a change of cpu and memory, while there is one.
func (m maker) resize() (list []corev1.PodCondition) {
	r := m.in.Resize
	if r.Pending != "" {
		list = append(list, corev1.PodCondition{Type: corev1.PodResizePending, Status: corev1.ConditionTrue, Reason: r.Pending, Message: r.Message})
	}
	if r.InProgress {
		c := corev1.PodCondition{Type: corev1.PodResizeInProgress, Status: corev1.ConditionTrue}
		if r.Error != "" {
			c.Reason, c.Message = corev1.PodReasonError, r.Error
		}
		list = append(list, c)
	}
	return list
}

// resources are what a container was given, and what it has.
func (m maker) resources(cs *corev1.ContainerStatus, spec *corev1.Container, c *observe.Container) {
	if len(spec.Resources.Requests) == 0 && len(spec.Resources.Limits) == 0 {
		return
	}
	cs.AllocatedResources = spec.Resources.Requests
	cs.Resources = spec.Resources.DeepCopy()
	if c.State != observe.Running || c.Resources == request.Amounts(m.in.Pod, spec) {
		return
	}
	put := func(list *corev1.ResourceList, cpu, memory int64) {
		if *list == nil {
			*list = corev1.ResourceList{}
		}
		delete(*list, corev1.ResourceCPU)
		delete(*list, corev1.ResourceMemory)
		if cpu != 0 {
			(*list)[corev1.ResourceCPU] = *resource.NewMilliQuantity(cpu, resource.DecimalSI)
		}
		if memory != 0 {
			(*list)[corev1.ResourceMemory] = *resource.NewQuantity(memory, resource.BinarySI)
		}
	}
	put(&cs.Resources.Requests, c.Resources.CPURequest, c.Resources.MemoryRequest)
	put(&cs.Resources.Limits, c.Resources.CPULimit, c.Resources.MemoryLimit)
}

// podResources are those of the pod as a whole, if it has some of its own.
func (m maker) podResources(s *corev1.PodStatus) {
	if r := m.in.Pod.Spec.Resources; r != nil {
		s.AllocatedResources = r.Requests
		s.Resources = r.DeepCopy()
	}
}
