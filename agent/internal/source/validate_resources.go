package source

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	resourcehelper "k8s.io/component-helpers/resource"
)

// podResources checks the resources of the pod as a whole against those of its
// containers.
func (c *podCheck) podResources(p *field.Path) {
	r := c.pod.Spec.Resources
	if r == nil {
		return
	}
	c.resources(r, p)
	for _, part := range []struct {
		name string
		list corev1.ResourceList
	}{{"requests", r.Requests}, {"limits", r.Limits}} {
		for name := range part.list {
			if name != corev1.ResourceCPU && name != corev1.ResourceMemory {
				c.add(field.NotSupported(p.Child(part.name).Key(string(name)), string(name), []string{"cpu", "memory"}))
			}
		}
	}
	for name, sum := range resourcehelper.AggregateContainerRequests(c.pod, resourcehelper.PodResourcesOptions{}) {
		if q, ok := r.Requests[name]; ok && sum.Cmp(q) > 0 {
			c.add(field.Invalid(p.Child("requests").Key(string(name)), q.String(), "must be greater than or equal to aggregate container requests of "+sum.String()))
		}
	}
	spec := field.NewPath("spec")
	each := func(list []corev1.Container, at *field.Path) {
		for i := range list {
			for name, q := range list[i].Resources.Limits {
				if most, ok := r.Limits[name]; ok && q.Cmp(most) > 0 {
					c.add(field.Invalid(at.Index(i).Child("resources", "limits").Key(string(name)), q.String(), "must be less than or equal to pod limits of "+most.String()))
				}
			}
		}
	}
	each(c.pod.Spec.InitContainers, spec.Child("initContainers"))
	each(c.pod.Spec.Containers, spec.Child("containers"))
}

func (c *podCheck) resizePolicy(ctr *corev1.Container, p *field.Path) {
	seen := map[corev1.ResourceName]bool{}
	for i, r := range ctr.ResizePolicy {
		at := p.Index(i)
		oneOf(c, at.Child("resourceName"), r.ResourceName, corev1.ResourceCPU, corev1.ResourceMemory)
		oneOf(c, at.Child("restartPolicy"), r.RestartPolicy, corev1.NotRequired, corev1.RestartContainer)
		if seen[r.ResourceName] {
			c.add(field.Duplicate(at, r.ResourceName))
		}
		seen[r.ResourceName] = true
		if r.RestartPolicy == corev1.RestartContainer && c.pod.Spec.RestartPolicy == corev1.RestartPolicyNever && !Sidecar(ctr) {
			c.add(field.Invalid(at.Child("restartPolicy"), r.RestartPolicy, "must be 'NotRequired' when `restartPolicy` is 'Never'"))
		}
	}
}
