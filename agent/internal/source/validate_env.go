package source

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func (c *podCheck) env(ctr *corev1.Container, p *field.Path) {
	for i, e := range ctr.Env {
		at := p.Child("env").Index(i)
		if e.Name == "" {
			c.add(field.Required(at.Child("name"), ""))
		} else {
			c.invalid(at.Child("name"), e.Name, validation.IsRelaxedEnvVarName(e.Name))
		}
		if strings.Contains(e.Value, "\x00") {
			c.add(field.Invalid(at.Child("value"), "…", "must not contain NUL"))
		}
		if e.ValueFrom != nil {
			c.envFrom(ctr, &e, at.Child("valueFrom"))
		}
	}
	for i, from := range ctr.EnvFrom {
		at := p.Child("envFrom").Index(i)
		n := 0
		if r := from.ConfigMapRef; r != nil {
			n++
			c.required(at.Child("configMapRef", "name"), r.Name)
		}
		if r := from.SecretRef; r != nil {
			n++
			c.required(at.Child("secretRef", "name"), r.Name)
		}
		if n != 1 {
			c.add(field.Invalid(at, n, "must have exactly one of configMapRef and secretRef"))
		}
		if from.Prefix != "" {
			c.invalid(at.Child("prefix"), from.Prefix, validation.IsRelaxedEnvVarName(from.Prefix))
		}
	}
}

func (c *podCheck) required(p *field.Path, value string) {
	if value == "" {
		c.add(field.Required(p, ""))
	}
}

func (c *podCheck) envFrom(ctr *corev1.Container, e *corev1.EnvVar, p *field.Path) {
	from := e.ValueFrom
	if e.Value != "" {
		c.add(field.Invalid(p, e.Value, "must not be set together with value"))
	}
	n := 0
	if r := from.FieldRef; r != nil {
		n++
		c.fieldPath(p.Child("fieldRef", "fieldPath"), r.FieldPath, false)
	}
	if r := from.ResourceFieldRef; r != nil {
		n++
		c.resourceRef(p.Child("resourceFieldRef"), r, false)
	}
	if r := from.ConfigMapKeyRef; r != nil {
		n++
		c.required(p.Child("configMapKeyRef", "name"), r.Name)
		c.required(p.Child("configMapKeyRef", "key"), r.Key)
	}
	if r := from.SecretKeyRef; r != nil {
		n++
		c.required(p.Child("secretKeyRef", "name"), r.Name)
		c.required(p.Child("secretKeyRef", "key"), r.Key)
	}
	if n != 1 {
		c.add(field.Invalid(p, n, "must have exactly one source"))
	}
}

// fieldPath checks a path of the downward API. Files can have whole maps,
// variables have what is known when the container starts.
func (c *podCheck) fieldPath(p *field.Path, value string, file bool) {
	for _, prefix := range []string{"metadata.labels['", "metadata.annotations['"} {
		if strings.HasPrefix(value, prefix) && strings.HasSuffix(value, "']") {
			return
		}
	}
	switch value {
	case "metadata.name", "metadata.namespace", "metadata.uid":
		return
	case "metadata.labels", "metadata.annotations":
		if file {
			return
		}
	case "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs":
		if !file {
			return
		}
	case "":
		c.add(field.Required(p, ""))
		return
	}
	c.add(field.Invalid(p, value, "is not a field of the downward API that can be used here"))
}

func (c *podCheck) resourceRef(p *field.Path, r *corev1.ResourceFieldSelector, file bool) {
	if file && r.ContainerName == "" {
		c.add(field.Required(p.Child("containerName"), ""))
	}
	if r.ContainerName != "" && !c.hasContainer(r.ContainerName) {
		c.add(field.NotFound(p.Child("containerName"), r.ContainerName))
	}
	_, name, _ := strings.Cut(r.Resource, ".")
	switch r.Resource {
	case "limits.cpu", "limits.memory", "limits.ephemeral-storage",
		"requests.cpu", "requests.memory", "requests.ephemeral-storage":
	case "limits." + name, "requests." + name:
		if strings.HasPrefix(name, corev1.ResourceHugePagesPrefix) {
			break
		}
		fallthrough
	default:
		c.add(field.Invalid(p.Child("resource"), r.Resource, "must be limits or requests of cpu, memory, ephemeral-storage or hugepages-SIZE"))
	}
	if r.Divisor.Sign() < 0 {
		c.add(field.Invalid(p.Child("divisor"), r.Divisor.String(), "must not be negative"))
	}
}

func (c *podCheck) hasContainer(name string) bool {
	for _, list := range [][]corev1.Container{c.pod.Spec.Containers, c.pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return true
			}
		}
	}
	return false
}
