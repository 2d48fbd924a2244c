package agent

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Pods end by priority before the machine goes down, none starts any more, and
// they begin again when it stays up, or with the next agent.
func TestShutdownEndsPodsByPriority(t *testing.T) {
	simulate(t, func(b *bench) {
		b.rt.life = func(string, uint32) life { return life{ignores: 5 * time.Second} }
		pod := func(name, priority string) string {
			return `{apiVersion: v1, kind: Pod, metadata: {name: ` + name + `}, spec: {` + priority + ` containers: [{name: ` + name + `, image: "app:1"}]}}`
		}
		b.apply(pod("low", ""))
		b.apply(pod("critical", "priorityClassName: system-node-critical, "))
		b.stop()
		b.boot()
		began := time.Now()
		if err := (backend{b.agent}).Shutdown(b.Context(), false); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 10*time.Second || took > 12*time.Second {
			t.Errorf("it took %s, for two pods of 5 s one after the other", took)
		}
		for _, name := range []string{"low", "critical"} {
			if p := b.pod(name); p.Status.Phase != corev1.PodFailed || p.Status.Reason != "Terminated" || p.Status.Message != shutdownMessage ||
				b.condition(name, corev1.DisruptionTarget).Reason != corev1.PodReasonTerminationByKubelet {
				t.Errorf("%s: %+v", name, p.Status)
			}
		}
		b.apply(pod("late", ""))
		b.after(time.Minute)
		if b.ready("late") || (backend{b.agent}).Node(b.Context()).Status.Conditions[3].Message != "node is shutting down" {
			t.Error("a pod starts while the machine goes down")
		}
		if err := (backend{b.agent}).Shutdown(b.Context(), true); err != nil {
			t.Fatal(err)
		}
		b.after(time.Minute)
		for _, name := range []string{"low", "critical", "late"} {
			if !b.ready(name) {
				t.Errorf("%s is not ready after all: %+v", name, b.pod(name).Status)
			}
		}
		if err := (backend{b.agent}).Shutdown(b.Context(), false); err != nil {
			t.Fatal(err)
		}
		b.stop()
		b.reboot()
		b.boot()
		b.after(time.Minute)
		for _, name := range []string{"low", "critical", "late"} {
			if !b.ready(name) {
				t.Errorf("%s is not ready after the reboot: %+v", name, b.pod(name).Status)
			}
		}
	})
}
