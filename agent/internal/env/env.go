// Package env makes the environment of a container from its specification, and
// the values of the downward API, which volumes need too. It is pure: objects
// and facts are passed in.
package env

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Objects finds the ConfigMaps and Secrets of the node; nil if there is none.
type Objects interface {
	ConfigMap(namespace, name string) *corev1.ConfigMap
	Secret(namespace, name string) *corev1.Secret
}

// Var is one variable.
type Var struct{ Name, Value string }

// Result is a container's environment.
type Result struct {
	Vars []Var // in the order of definition, each name once
	// Skipped are keys of envFrom that cannot be names of variables.
	Skipped []string
	values  map[string]string
}

// Lookup returns a variable's value.
func (r *Result) Lookup(name string) (string, bool) {
	v, ok := r.values[name]
	return v, ok
}

// Expand expands $(NAME) in each string.
func (r *Result) Expand(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = Expand(s, r.Lookup)
	}
	return out
}

// Static expands $(NAME) in the command of a probe, by the values that the
// definition of its container has itself: what comes from elsewhere is "", as the
// kubelet has it.
func Static(command []string, list []corev1.EnvVar) []string {
	r := Result{values: map[string]string{}}
	for _, e := range list {
		r.values[e.Name] = e.Value
	}
	return r.Expand(command)
}

func (r *Result) set(name, value string) {
	if _, ok := r.values[name]; !ok {
		r.Vars = append(r.Vars, Var{Name: name})
	}
	r.values[name] = value
}

// Make makes the environment of container c. An error names the variable and
// the object that is missing.
func Make(pod *corev1.Pod, c *corev1.Container, objs Objects, facts Facts) (*Result, error) {
	r := &Result{values: map[string]string{}}
	for _, from := range c.EnvFrom {
		if err := r.addAll(pod, from, objs); err != nil {
			return nil, err
		}
	}
	for _, e := range c.Env {
		value, ok := Expand(e.Value, r.Lookup), true
		if e.ValueFrom != nil {
			var err error
			if value, ok, err = valueOf(pod, c, e.ValueFrom, objs, facts); err != nil {
				return nil, fmt.Errorf("env %s: %w", e.Name, err)
			}
		}
		if ok {
			r.set(e.Name, value)
		}
	}
	for i := range r.Vars {
		r.Vars[i].Value = r.values[r.Vars[i].Name]
	}
	return r, nil
}

func (r *Result) addAll(pod *corev1.Pod, from corev1.EnvFromSource, objs Objects) error {
	data := map[string]string{}
	switch {
	case from.ConfigMapRef != nil:
		m := objs.ConfigMap(pod.Namespace, from.ConfigMapRef.Name)
		if m == nil && !isTrue(from.ConfigMapRef.Optional) {
			return missing("configmap", from.ConfigMapRef.Name)
		}
		if m != nil {
			data = m.Data
		}
	case from.SecretRef != nil:
		s := objs.Secret(pod.Namespace, from.SecretRef.Name)
		if s == nil && !isTrue(from.SecretRef.Optional) {
			return missing("secret", from.SecretRef.Name)
		}
		if s != nil {
			for k, v := range s.Data {
				data[k] = string(v)
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(data)) {
		name := from.Prefix + key
		if len(validation.IsRelaxedEnvVarName(name)) > 0 || strings.Contains(data[key], "\x00") {
			r.Skipped = append(r.Skipped, name)
			continue
		}
		r.set(name, data[key])
	}
	return nil
}

// missing has the kubelet's words.
func missing(kind, name string) error { return fmt.Errorf("%s %q not found", kind, name) }

func valueOf(pod *corev1.Pod, c *corev1.Container, from *corev1.EnvVarSource, objs Objects, facts Facts) (value string, ok bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = Field(pod, facts, from.FieldRef.FieldPath)
		return value, true, err
	case from.ResourceFieldRef != nil:
		value, err = Resource(pod, facts, c.Name, from.ResourceFieldRef)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		m := objs.ConfigMap(pod.Namespace, ref.Name)
		if m == nil {
			return "", false, unless(ref.Optional, missing("configmap", ref.Name))
		}
		value, ok = m.Data[ref.Key]
		if !ok {
			return "", false, unless(ref.Optional, fmt.Errorf("couldn't find key %v in ConfigMap %v/%v", ref.Key, pod.Namespace, ref.Name))
		}
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		s := objs.Secret(pod.Namespace, ref.Name)
		if s == nil {
			return "", false, unless(ref.Optional, missing("secret", ref.Name))
		}
		data, there := s.Data[ref.Key]
		if !there {
			return "", false, unless(ref.Optional, fmt.Errorf("couldn't find key %v in Secret %v/%v", ref.Key, pod.Namespace, ref.Name))
		}
		value, ok = string(data), true
	}
	if strings.Contains(value, "\x00") {
		return "", false, fmt.Errorf("value contains NUL")
	}
	return value, ok, nil
}

// Secrets are the values that a pod's variables have from Secrets.
func Secrets(pod *corev1.Pod, objs Objects) (values []string) {
	add := func(secret string, keys ...string) {
		s := objs.Secret(pod.Namespace, secret)
		if s == nil {
			return
		}
		for key, value := range s.Data {
			if len(keys) == 0 || slices.Contains(keys, key) {
				values = append(values, string(value))
			}
		}
	}
	var ephemeral []corev1.Container
	for _, c := range pod.Spec.EphemeralContainers {
		ephemeral = append(ephemeral, corev1.Container(c.EphemeralContainerCommon))
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers, ephemeral} {
		for _, c := range list {
			for _, from := range c.EnvFrom {
				if from.SecretRef != nil {
					add(from.SecretRef.Name)
				}
			}
			for _, e := range c.Env {
				if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
					add(e.ValueFrom.SecretKeyRef.Name, e.ValueFrom.SecretKeyRef.Key)
				}
			}
		}
	}
	return values
}

func isTrue(b *bool) bool { return b != nil && *b }

func unless(optional *bool, err error) error {
	if isTrue(optional) {
		return nil
	}
	return err
}
