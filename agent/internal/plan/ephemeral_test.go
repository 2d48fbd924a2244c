package plan

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/observe"
)

// An ephemeral container is started once, when its target runs, whatever the
// init containers do, and never again.
func TestEphemeralContainersStartOnce(t *testing.T) {
	grace := int64(1)
	pod := &corev1.Pod{}
	pod.Spec.TerminationGracePeriodSeconds = &grace
	pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
	pod.Spec.InitContainers = []corev1.Container{{Name: "init"}}
	pod.Spec.Containers = []corev1.Container{{Name: "app"}}
	pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "look"}}}
	now := time.Unix(1000, 0)
	running := func(name string) observe.Container {
		return observe.Container{ID: name, Name: name, SandboxID: "s", State: observe.Running}
	}
	dead := observe.Container{ID: "look", Name: "look", SandboxID: "old", State: observe.Exited, ExitCode: 1}
	for _, c := range []struct {
		what   string
		target string
		seen   []observe.Container
		starts bool
		waits  string
	}{
		{"while an init container runs", "", []observe.Container{running("init")}, true, ""},
		{"while its target does not run", "app", []observe.Container{running("init")}, false, TargetNotRunning},
		{"when its target runs", "app", []observe.Container{running("app")}, true, ""},
		{"while it runs", "", []observe.Container{running("app"), running("look")}, false, ""},
		{"after it ended, in another sandbox", "", []observe.Container{running("app"), dead}, false, ""},
	} {
		pod.Spec.EphemeralContainers[0].TargetContainerName = c.target
		p := Next(Input{Pod: pod, Prepared: true, Seen: observe.Pod{Sandboxes: []observe.Sandbox{{ID: "s", Ready: true}}, Containers: c.seen}}, now)
		starts := false
		for _, s := range p.Steps {
			starts = starts || s.Kind == Start && s.Container == "look"
			if s.Kind == Kill || s.Kind == RemoveContainer {
				t.Errorf("%s: %v", c.what, s)
			}
		}
		if starts != c.starts || p.Waits["look"].Reason != c.waits {
			t.Errorf("%s: starts %t, waits for %q", c.what, starts, p.Waits["look"].Reason)
		}
	}
}
