package agent

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/client"
	"podstead/agent/internal/request"
)

// narrowCPU is what a narrow world has for pods, in thousandths: each of them fits
// alone, and the critical one beside some.
const narrowCPU = 800

const critical = `
apiVersion: v1
kind: Pod
metadata: {name: critical}
spec:
  priorityClassName: system-cluster-critical
  terminationGracePeriodSeconds: 3
  containers:
  - {name: a, image: "app:1", resources: {requests: {cpu: 600m}}}
`

// TestPreemptionOfOld lives through narrow worlds that once showed a bug.
func TestPreemptionOfOld(t *testing.T) {
	for seed, what := range map[uint64]string{
		18960862327717928:   "a pod that had ended for a shutdown was told as failed for no reason when it began again",
		1761016692087642364: "a pod that had to go while the runtime was away became another one, and a critical pod waited for ever for what it had",
		73:                  "a container of a pod without grace was told to end, and its preStop hook did not run",
		1930137478326079715: "a pod was deleted when a shutdown did not come, and that was forgotten",
	} {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Log(what)
			for range lives {
				live(t, seed, kind{narrow: true, gates: seed != 18960862327717928})
			}
		})
	}
}

// turnCritical has the critical pod come, or go.
func (s *story) turnCritical() {
	if s.wanted["critical"] == "" {
		s.apply("critical", critical)
		return
	}
	s.delete("critical", nil)
}

// waitsForRoom tells whether a pod rightly is not what it should be, as there is no
// room for it beside those that have begun. The critical one never has to wait.
func (s *story) waitsForRoom(p *corev1.Pod, pods []*corev1.Pod) bool {
	posted, _ := s.agent.board.get("default", p.Name)
	waits := slices.ContainsFunc(posted.why.Waiting, func(w client.Wait) bool { return w.Reason == "OutOfcpu" })
	preempted := p.Status.Phase == corev1.PodFailed && p.Status.Reason == preempting
	for _, c := range p.Status.Conditions {
		waits = waits || c.Type == corev1.PodResizePending && c.Reason == corev1.PodReasonDeferred
	}
	if !waits && !preempted || p.Name == "critical" {
		return false
	}
	if preempted && p.Spec.RestartPolicy == corev1.RestartPolicyNever {
		return true // it is not run twice
	}
	used := s.cpu(p.Name)
	for _, other := range pods {
		over := other.Status.Phase == corev1.PodFailed || other.Status.Phase == corev1.PodSucceeded || other.Status.Reason == "OutOfcpu"
		if other.Name != p.Name && !over {
			used += s.cpu(other.Name)
		}
	}
	return used > narrowCPU
}

// cpu is what a pod wants, in thousandths.
func (s *story) cpu(name string) int64 {
	objects, _, err := s.agent.decoder.Decode([]byte(s.wanted[name]))
	if err != nil {
		s.Fatal(err)
	}
	r := request.Requests(objects[0].Pod)
	return r.Cpu().MilliValue()
}
