package source

import (
	"path"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// AddEphemeral defaults and checks an ephemeral container that is to be added to
// a pod, as the API server does. What it must not have at all is in support.txt.
func (d *Decoder) AddEphemeral(pod *corev1.Pod, e corev1.EphemeralContainer) (corev1.EphemeralContainer, error) {
	at := field.NewPath("spec", "ephemeralContainers").Index(len(pod.Spec.EphemeralContainers))
	_, errs := d.support.check(&e, at.String())
	defaultContainer((*corev1.Container)(&e.EphemeralContainerCommon), pod.Spec.HostNetwork)
	next := pod.DeepCopy()
	next.Spec.EphemeralContainers = append(next.Spec.EphemeralContainers, e)
	errs = append(errs, validatePod(next, d.sysctls)...)
	return e, errs.ToAggregate()
}

// ephemeralContainers checks the ephemeral containers; names are those of the others.
func (c *podCheck) ephemeralContainers(p *field.Path, names map[string]bool) {
	s := &c.pod.Spec
	for i := range s.EphemeralContainers {
		e, at := &s.EphemeralContainers[i], p.Index(i)
		ctr := (*corev1.Container)(&e.EphemeralContainerCommon)
		if e.Name == "" {
			c.add(field.Required(at.Child("name"), ""))
		} else {
			c.invalid(at.Child("name"), e.Name, validation.IsDNS1123Label(e.Name))
		}
		if names[e.Name] {
			c.add(field.Duplicate(at.Child("name"), e.Name))
		}
		names[e.Name] = true
		c.image(ctr, at)
		oneOf(c, at.Child("terminationMessagePolicy"), e.TerminationMessagePolicy, corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)
		if !path.IsAbs(e.TerminationMessagePath) {
			c.add(field.Invalid(at.Child("terminationMessagePath"), e.TerminationMessagePath, "must be an absolute path"))
		}
		c.env(ctr, at)
		c.mounts(ctr, at.Child("volumeMounts"))
		for j, m := range e.VolumeMounts {
			if m.SubPath != "" || m.SubPathExpr != "" {
				c.add(field.Forbidden(at.Child("volumeMounts").Index(j).Child("subPath"), "cannot be set for an ephemeral container"))
			}
		}
		c.containerSecurity(e.SecurityContext, at.Child("securityContext"))
		target := func(x corev1.Container) bool { return x.Name == e.TargetContainerName }
		if e.TargetContainerName != "" && !slices.ContainsFunc(s.Containers, target) {
			c.add(field.NotFound(at.Child("targetContainerName"), e.TargetContainerName))
		}
	}
}
