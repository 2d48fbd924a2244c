package status

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podstead/agent/internal/plan"
)

func TestGates(t *testing.T) {
	set := func(pairs ...string) (list []corev1.PodCondition) {
		for _, p := range pairs {
			name, status, _ := strings.Cut(p, "=")
			list = append(list, corev1.PodCondition{Type: corev1.PodConditionType(name), Status: corev1.ConditionStatus(status),
				LastTransitionTime: metav1.NewTime(now.Add(-time.Hour))})
		}
		return list
	}
	const absent, not = `corresponding condition of pod readiness gate "x" does not exist.`, `the status of pod readiness gate "x" is not "True", but `
	for _, c := range []struct {
		what    string
		gates   []corev1.PodConditionType
		set     []corev1.PodCondition
		unready bool // the containers are
		want    string
	}{
		{"no gates", nil, nil, false, "True  "},
		{"a condition that no gate names", nil, set("x=False"), false, "True  "},
		{"not there", []corev1.PodConditionType{"x"}, set("y=True"), false, "False ReadinessGatesNotReady " + absent},
		{"false", []corev1.PodConditionType{"x"}, set("x=False"), false, "False ReadinessGatesNotReady " + not + "False"},
		{"unknown", []corev1.PodConditionType{"x"}, set("x=Unknown"), false, "False ReadinessGatesNotReady " + not + "Unknown"},
		{"one of two", []corev1.PodConditionType{"y", "x"}, set("y=True"), false, "False ReadinessGatesNotReady " + absent},
		{"two of two", []corev1.PodConditionType{"z", "x"}, set("x=False"), false, `False ReadinessGatesNotReady corresponding condition of pod readiness gate "z" does not exist., ` + not + "False"},
		{"open", []corev1.PodConditionType{"y", "x"}, set("y=True", "x=True"), false, "True  "},
		{"the node's own", []corev1.PodConditionType{corev1.PodInitialized}, nil, false, "True  "},
		{"open, containers not ready", []corev1.PodConditionType{"x"}, set("x=True"), true, "False ContainersNotReady containers with unready status: [a]"},
		{"closed, containers not ready", []corev1.PodConditionType{"x"}, nil, true, "False ContainersNotReady containers with unready status: [a]"},
	} {
		in := input(corev1.RestartPolicyAlways, end("i", 0), run("s"), run("a"))
		in.Conditions = c.set
		if c.unready {
			in.Probes["a1"] = plan.Probe{Started: true}
		}
		for _, g := range c.gates {
			in.Pod.Spec.ReadinessGates = append(in.Pod.Spec.ReadinessGates, corev1.PodReadinessGate{ConditionType: g})
		}
		s, seen := Make(in), 0
		for _, x := range s.Conditions {
			switch {
			case x.Type == corev1.PodReady:
				if got := strings.Join([]string{string(x.Status), x.Reason, x.Message}, " "); got != c.want {
					t.Errorf("%s: %q, want %q", c.what, got, c.want)
				}
			case x.Type == corev1.ContainersReady && (x.Status == corev1.ConditionTrue) == c.unready:
				t.Errorf("%s: %+v", c.what, x)
			case !Own(x.Type):
				if seen++; !x.LastTransitionTime.Time.Equal(now.Add(-time.Hour)) {
					t.Errorf("%s: %+v has another time", c.what, x)
				}
			}
		}
		if seen != len(c.set) {
			t.Errorf("%s: %d conditions of others are told, want %d", c.what, seen, len(c.set))
		}
	}
}
