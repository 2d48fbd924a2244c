package env

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestExpand(t *testing.T) {
	value := func(name string) (string, bool) {
		v, ok := map[string]string{"A": "a", "B": "$(A)", "EMPTY": ""}[name]
		return v, ok
	}
	for in, want := range map[string]string{
		"":               "",
		"plain":          "plain",
		"$(A)":           "a",
		"x$(A)y$(A)z":    "xayaz",
		"$(B)":           "$(A)", // a value is not expanded again
		"$(EMPTY)":       "",
		"$(NONE)":        "$(NONE)",
		"$$(A)":          "$(A)",
		"$$$(A)":         "$a",
		"$$$$(A)":        "$$(A)",
		"$":              "$",
		"$$":             "$",
		"$A":             "$A",
		"$(A":            "$(A",
		"$(":             "$(",
		"$()":            "$()",
		"a$":             "a$",
		"$(A)$":          "a$",
		"$(A))":          "a)",
		"\n$(A)":         "\na",
		"$(NONE)$(A)":    "$(NONE)a",
		"$(A$(A))":       "$(A$(A))",
		"foo$$bar":       "foo$bar",
		"$(A-NOT_A)$(A)": "$(A-NOT_A)a",
	} {
		if got := Expand(in, value); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

type objects struct {
	maps    map[string]*corev1.ConfigMap
	secrets map[string]*corev1.Secret
}

func (o objects) ConfigMap(ns, name string) *corev1.ConfigMap { return o.maps[ns+"/"+name] }
func (o objects) Secret(ns, name string) *corev1.Secret       { return o.secrets[ns+"/"+name] }

func some() objects {
	return objects{
		maps:    map[string]*corev1.ConfigMap{"ns/conf": {Data: map[string]string{"a": "1", "b": "2", "not=name": "x"}}},
		secrets: map[string]*corev1.Secret{"ns/sec": {Data: map[string][]byte{"k": []byte("v"), "nul": []byte("a\x00b")}}},
	}
}

func thePod(c corev1.Container) *corev1.Pod {
	c.Name = "app"
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "ns", UID: "u", Labels: map[string]string{"l": "x"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{c}},
	}
}

func render(r *Result) string {
	var b strings.Builder
	for _, v := range r.Vars {
		fmt.Fprintf(&b, "%s=%s ", v.Name, v.Value)
	}
	return strings.TrimSpace(b.String())
}

func TestMake(t *testing.T) {
	yes := true
	key := func(name, key string, optional *bool) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: name}, Key: key, Optional: optional}}
	}
	secret := func(name, key string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: name}, Key: key}}
	}
	all := func(name, prefix string, optional *bool) corev1.EnvFromSource {
		return corev1.EnvFromSource{Prefix: prefix, ConfigMapRef: &corev1.ConfigMapEnvSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: name}, Optional: optional}}
	}
	field := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
	}
	for _, c := range []struct {
		what      string
		ctr       corev1.Container
		want, err string
	}{
		{"plain, in order, expanded", corev1.Container{Env: []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "$(A)$(C)"}, {Name: "C", Value: "3"}}}, "A=1 B=1$(C) C=3", ""},
		{"the last definition counts", corev1.Container{Env: []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "x"}, {Name: "A", Value: "2$(A)"}}}, "A=21 B=x", ""},
		{"envFrom first, env over it", corev1.Container{EnvFrom: []corev1.EnvFromSource{all("conf", "", nil)}, Env: []corev1.EnvVar{{Name: "a", Value: "$(b)"}}}, "a=2 b=2", ""},
		{"prefix", corev1.Container{EnvFrom: []corev1.EnvFromSource{all("conf", "P_", nil)}}, "P_a=1 P_b=2", ""},
		{"one key", corev1.Container{Env: []corev1.EnvVar{{Name: "A", ValueFrom: key("conf", "a", nil)}, {Name: "B", ValueFrom: secret("sec", "k")}}}, "A=1 B=v", ""},
		{"optional ones that are missing", corev1.Container{EnvFrom: []corev1.EnvFromSource{all("none", "", &yes)}, Env: []corev1.EnvVar{{Name: "A", ValueFrom: key("none", "a", &yes)}, {Name: "B", ValueFrom: key("conf", "z", &yes)}}}, "", ""},
		{"missing map", corev1.Container{EnvFrom: []corev1.EnvFromSource{all("none", "", nil)}}, "", `configmap "none" not found`},
		{"missing key", corev1.Container{Env: []corev1.EnvVar{{Name: "A", ValueFrom: key("conf", "z", nil)}}}, "", "couldn't find key z in ConfigMap ns/conf"},
		{"missing secret", corev1.Container{Env: []corev1.EnvVar{{Name: "A", ValueFrom: secret("none", "k")}}}, "", `secret "none" not found`},
		{"NUL", corev1.Container{Env: []corev1.EnvVar{{Name: "A", ValueFrom: secret("sec", "nul")}}}, "", "NUL"},
		{"facts", corev1.Container{Env: []corev1.EnvVar{{Name: "A", ValueFrom: field("metadata.name")}, {Name: "B", ValueFrom: field("status.podIPs")},
			{Name: "C", ValueFrom: field("metadata.labels['l']")}, {Name: "D", ValueFrom: field("spec.nodeName")}, {Name: "E", ValueFrom: field("status.hostIP")}}},
			"A=web B=10.0.0.1,fd::1 C=x D=n1 E=1.2.3.4", ""},
	} {
		pod := thePod(c.ctr)
		r, err := Make(pod, &pod.Spec.Containers[0], some(), Facts{NodeName: "n1", HostIPs: []string{"1.2.3.4"}, PodIPs: []string{"10.0.0.1", "fd::1"}})
		switch {
		case err != nil:
			if c.err == "" || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %q", c.what, err, c.err)
			}
		case c.err != "" || render(r) != c.want:
			t.Errorf("%s: %s, want %s%s", c.what, render(r), c.want, c.err)
		}
	}
}

func TestResource(t *testing.T) {
	pod := thePod(corev1.Container{Resources: corev1.ResourceRequirements{
		Limits:   corev1.ResourceList{"memory": resource.MustParse("100Mi"), "hugepages-2Mi": resource.MustParse("4Mi")},
		Requests: corev1.ResourceList{"cpu": resource.MustParse("250m"), "memory": resource.MustParse("1")},
	}})
	bounded := pod.DeepCopy()
	bounded.Spec.Resources = &corev1.ResourceRequirements{Limits: corev1.ResourceList{"cpu": resource.MustParse("2"), "memory": resource.MustParse("500Mi"), "ephemeral-storage": resource.MustParse("1Ti")}}
	facts := Facts{CPU: resource.MustParse("4"), Memory: resource.MustParse("1Gi"), Storage: resource.MustParse("7Gi")}
	for _, c := range []struct{ what, want string }{
		{"limits.memory", "104857600"},
		{"limits.cpu", "2"},                        // the pod's
		{"limits.ephemeral-storage", "7516192768"}, // the node has less than the pod may
		{"requests.cpu", "1"},
	} {
		if got, err := Resource(bounded, facts, "app", &corev1.ResourceFieldSelector{Resource: c.what}); err != nil || got != c.want {
			t.Errorf("%s in a bounded pod is %s, %v; want %s", c.what, got, err, c.want)
		}
	}
	for _, c := range []struct{ what, divisor, want string }{
		{"limits.ephemeral-storage", "1Gi", "7"}, // the node's
		{"limits.memory", "", "104857600"},
		{"limits.memory", "1Mi", "100"},
		{"limits.memory", "1Gi", "1"}, // rounded up
		{"requests.cpu", "", "1"},     // rounded up
		{"requests.cpu", "1m", "250"},
		{"limits.cpu", "", "4"}, // the node's
		{"requests.memory", "1Ki", "1"},
		{"requests.ephemeral-storage", "", "0"},
		{"limits.hugepages-2Mi", "1Mi", "4"},
		{"requests.hugepages-1Gi", "", "0"},
	} {
		sel := &corev1.ResourceFieldSelector{Resource: c.what}
		if c.divisor != "" {
			sel.Divisor = resource.MustParse(c.divisor)
		}
		if got, err := Resource(pod, facts, "app", sel); err != nil || got != c.want {
			t.Errorf("%s / %s is %s, %v; want %s", c.what, c.divisor, got, err, c.want)
		}
	}
}
