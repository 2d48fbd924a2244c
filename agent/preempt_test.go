package agent

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"podstead/agent/internal/allocation"
)

// TestCriticalPodsPreempt has a critical pod come to a node that is full: pods of
// lower priority go for it, and begin again when it has gone.
func TestCriticalPodsPreempt(t *testing.T) {
	simulate(t, func(b *bench) {
		b.rt.script(func() {
			b.rt.life = func(name string, _ uint32) life { return life{ignores: 3 * time.Second} }
		})
		b.stop()
		b.allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourcePods: resource.MustParse("10")}
		b.boot()
		pod := func(name, more, cpu string) string {
			return `{apiVersion: v1, kind: Pod, metadata: {name: ` + name + `}, spec: {` + more + ` terminationGracePeriodSeconds: 7, containers: [{name: ` + name +
				`, image: "app:1", resources: {requests: {cpu: ` + cpu + `}}}]}}`
		}
		b.apply(pod("small", "", "500m"))
		b.apply(pod("once", "restartPolicy: Never, ", "300m"))
		b.apply(pod("high", "priority: 1000, ", "1200m"))
		b.after(time.Minute)
		b.apply(pod("critical", "priorityClassName: system-cluster-critical, ", "800m"))
		b.after(time.Second)
		if st := b.pod("critical").Status; st.Reason != "OutOfcpu" || b.ready("critical") {
			t.Errorf("before others have ended: %+v", st)
		}
		b.after(30 * time.Second)
		if !b.ready("critical") || !b.ready("small") || !b.ready("once") {
			t.Errorf("critical %t, small %t, once %t: one pod that is large enough goes, and no other", b.ready("critical"), b.ready("small"), b.ready("once"))
		}
		b.preempted("high")
		if got := b.rt.timeouts("high"); len(got) != 1 || got[0] != 7 {
			t.Errorf("it was stopped with %v, want its own grace", got)
		}
		b.stop()
		b.boot()
		b.after(time.Minute)
		b.preempted("high")
		b.apply(pod("node", "priorityClassName: system-node-critical, ", "2"))
		b.after(time.Minute)
		for _, name := range []string{"small", "once", "critical"} {
			b.preempted(name)
		}
		if !b.ready("node") {
			t.Errorf("%+v", b.pod("node").Status)
		}
		b.delete("node", nil)
		b.after(2 * time.Minute)
		if !b.ready("critical") || !b.ready("high") || b.ready("small") {
			t.Errorf("when there is room: critical %t, high %t, small %t", b.ready("critical"), b.ready("high"), b.ready("small"))
		}
		b.preempted("once") // is not run twice
		b.delete("high", nil)
		b.after(time.Minute)
		if !b.ready("small") {
			t.Errorf("small: %+v", b.pod("small").Status)
		}
		if st := b.pod("small").Status; st.Reason != "" || st.Message != "" {
			t.Errorf("it still says %s: %s", st.Reason, st.Message)
		}
		for _, name := range []string{"small", "once", "critical"} {
			b.delete(name, nil)
		}
		b.after(time.Minute)
		b.gone()
	})
}

// TestPreemptedAsItComesBack: a preempted pod gets room again, and a critical pod
// wants it before it has begun.
func TestPreemptedAsItComesBack(t *testing.T) {
	simulate(t, func(b *bench) {
		b.rt.script(func() {
			b.rt.life = func(string, uint32) life { return life{ignores: 3 * time.Second} }
		})
		b.stop()
		b.allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}
		b.boot()
		pod := func(name, more string) string {
			return `{apiVersion: v1, kind: Pod, metadata: {name: ` + name + `}, spec: {` + more + ` containers: [{name: ` + name +
				`, image: "app:1", resources: {requests: {cpu: 600m}}}]}}`
		}
		b.apply(pod("low", ""))
		b.after(time.Minute)
		b.apply(pod("critical", "priorityClassName: system-cluster-critical, "))
		b.after(time.Minute)
		b.delete("critical", nil)
		b.preempted("low") // all sleep but the worker of the critical pod, which ends
		b.after(time.Second)
		w := b.agent.workers[string(b.pod("low").UID)]
		w.node.ledger.Hold(w.requests(w.pod))
		w.again = true
		w.node.ledger.Take(allocation.Request{UID: string(b.pod("critical").UID), Priority: 2_000_000_000, Preempts: true,
			Requests: w.requests(w.pod).Requests, Free: func() {}})
		b.apply(pod("critical", "priorityClassName: system-cluster-critical, "))
		b.after(time.Minute)
		b.preempted("low")
		if !b.ready("critical") {
			t.Errorf("it waits for ever: %+v", b.pod("critical").Status)
		}
		b.delete("critical", nil)
		b.after(time.Minute)
		if !b.ready("low") {
			t.Errorf("it does not come back: %+v", b.pod("low").Status)
		}
	})
}

func (b *bench) preempted(name string) {
	b.Helper()
	st := b.pod(name).Status
	if st.Phase != corev1.PodFailed || st.Reason != "Preempting" || st.Message != "Preempted in order to admit critical pod" {
		b.Errorf("%s is %s, %s: %s", name, st.Phase, st.Reason, st.Message)
	}
	found := false
	for _, c := range st.Conditions {
		found = found || c.Type == corev1.DisruptionTarget && c.Reason == "TerminationByKubelet" && strings.HasPrefix(c.Message, "Pod was preempted by Kubelet")
	}
	if !found {
		b.Errorf("%s has no condition DisruptionTarget: %+v", name, st.Conditions)
	}
}
