package e2etest

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// failing is a pod whose liveness probe fails and whose readiness probe fails when
// it is told to. Both write down that they were made.
const failing = `
apiVersion: v1
kind: Pod
metadata: {name: failing}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: alive
    image: test.local/busybox:1
    command: [sh, -c, "echo run >> /s/alive; exec sleep 12345"]
    livenessProbe: {exec: {command: [sh, -c, "echo failed >> /s/alive; false"]}, periodSeconds: 1, timeoutSeconds: 300, failureThreshold: 4}
    volumeMounts: [{name: s, mountPath: /s}]
  - name: ready
    image: test.local/busybox:1
    command: [sleep, "12345"]
    readinessProbe: {exec: {command: [sh, -c, "test ! -e /s/sick || { echo failed >> /s/ready; false; }"]}, periodSeconds: 1, timeoutSeconds: 300}
    volumeMounts: [{name: s, mountPath: /s}]
  volumes:
  - {name: s, emptyDir: {}}
`

// beginToFail waits for the first failures, two of the four that it takes for who
// is not alive.
func (n *node) beginToFail() {
	n.Helper()
	n.apply(failing)
	n.until("failing", "ready once", func(p *corev1.Pod) bool {
		return p != nil && len(p.Status.ContainerStatuses) == 2 && p.Status.ContainerStatuses[1].Ready
	})
	n.exec("failing", "ready", "touch", "/s/sick")
	deadline := time.Now().Add(patience)
	for n.exec("failing", "ready", "sh", "-c", "test ! -e /s/ready || test $(grep -c failed /s/alive) -lt 2 || echo both") == "" {
		if time.Now().After(deadline) {
			n.Fatal("no probe fails")
		}
	}
}

// hasFailed checks that the failures went on counting. One more than it takes is
// there if the agent ended before it heard of it; had it begun anew, two were.
func (n *node) hasFailed() {
	n.Helper()
	n.until("failing", "restarted, and not ready", func(p *corev1.Pod) bool {
		return p != nil && p.Status.ContainerStatuses[0].RestartCount > 0 && p.Status.ContainerStatuses[0].State.Running != nil && !p.Status.ContainerStatuses[1].Ready
	})
	text := n.exec("failing", "ready", "cat", "/s/alive")
	first, _, again := strings.Cut(strings.TrimPrefix(text, "run\n"), "run\n")
	if got := strings.Count(first, "failed"); !again || got < 4 || got > 5 {
		n.Errorf("killed after %d failures of 4:\n%s", got, text)
	}
	if err := n.client.DeletePod(n.Context(), "default", "failing", nil); err != nil {
		n.Fatal(err)
	}
	n.until("failing", "gone", gone)
}
