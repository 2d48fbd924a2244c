package agent

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func (b *bench) set(pod, name string, status corev1.ConditionStatus) error {
	b.Helper()
	err := backend{b.agent}.SetCondition(b.Context(), "default", pod, corev1.PodCondition{
		Type: corev1.PodConditionType(name), Status: status, Reason: "Test", Message: "by a test", ObservedGeneration: 7})
	synctest.Wait()
	return err
}

// A pod waits for the conditions that its gates name. They are kept over a restart
// of the agent, a reboot and edits of its containers; a pod that begins anew has
// none.
func TestReadinessGates(t *testing.T) {
	simulate(t, func(b *bench) {
		gated := strings.Replace(web, "spec:", "status: {conditions: [{type: a/one, status: \"True\"}, {type: two, status: \"True\"}]}\nspec:\n  readinessGates: [{conditionType: a/one}, {conditionType: two}]", 1)
		b.apply(gated)
		if c := b.condition("web", corev1.PodReady); c.Reason != "ReadinessGatesNotReady" || b.condition("web", corev1.ContainersReady).Status != corev1.ConditionTrue {
			t.Fatalf("with its gates closed: %+v", c)
		}
		_, why, _ := backend{b.agent}.Pod("default", "web")
		if why.Stage != "running, not ready" || len(why.Waiting) != 2 || !strings.Contains(why.Waiting[0].Message, `"a/one" does not exist; set it with: podstead condition web -n default a/one=True`) {
			t.Errorf("why: %+v", why)
		}
		for name, status := range map[string]corev1.ConditionStatus{"Ready": "True", "ContainersReady": "False", "DisruptionTarget": "True", "two": "Maybe", "t wo": "True", "": "True"} {
			if err := b.set("web", name, status); err == nil {
				t.Errorf("%q=%s is taken", name, status)
			}
		}
		if err := b.set("other", "two", "True"); err == nil {
			t.Error("a condition of no pod is taken")
		}
		b.mustSet("web", "a/one", "True")
		b.mustSet("web", "two", "False")
		if b.ready("web") {
			t.Error("ready although one condition is False")
		}
		b.after(time.Minute)
		b.mustSet("web", "two", "True")
		set := time.Now()
		b.mustSet("web", "extra", "Unknown")
		restarts := func(what string) {
			t.Helper()
			c := b.condition("web", "two")
			if !b.ready("web") || !c.LastTransitionTime.Time.Equal(set) || c.Reason != "Test" || b.condition("web", "extra").Status != "Unknown" {
				t.Errorf("%s: ready %v, %+v", what, b.ready("web"), b.pod("web").Status.Conditions)
			}
		}
		restarts("open")
		b.after(time.Minute)
		b.mustSet("web", "two", "True")
		restarts("the same once more")
		before, _ := json.Marshal(b.pod("web"))
		b.stop()
		b.boot()
		if after, _ := json.Marshal(b.pod("web")); string(before) != string(after) {
			t.Errorf("the agent's restart changed\n%s to\n%s", before, after)
		}
		b.apply(strings.Replace(gated, "app:1", "app:2", 1))
		b.after(time.Minute)
		restarts("another image")
		b.stop()
		b.reboot()
		b.boot()
		b.after(time.Minute)
		restarts("a reboot")

		b.apply(strings.Replace(gated, "spec:", "spec:\n  hostname: other", 1))
		b.after(time.Minute)
		b.without("begun anew")
		b.mustSet("web", "a/one", "True")
		b.mustSet("web", "two", "True")
		b.delete("web", nil)
		b.apply(gated)
		b.after(time.Minute)
		b.without("deleted and made again")
	})
}

func (b *bench) mustSet(pod, name string, status corev1.ConditionStatus) {
	b.Helper()
	if err := b.set(pod, name, status); err != nil {
		b.Error(err)
	}
}

// without checks that the pod has no condition that somebody has set.
func (b *bench) without(what string) {
	b.Helper()
	for _, name := range []corev1.PodConditionType{"a/one", "two", "extra"} {
		if c := b.condition("web", name); c.Type != "" {
			b.Errorf("%s: it has %+v", what, c)
		}
	}
	if b.ready("web") || b.condition("web", corev1.ContainersReady).Status != corev1.ConditionTrue {
		b.Errorf("%s: %+v", what, b.pod("web").Status.Conditions)
	}
}
