package e2etest

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent"
	"podstead/agent/client"
	"podstead/agent/internal/eviction"
)

const evictable = `
apiVersion: v1
kind: Pod
metadata: {name: hog}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: test.local/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, "dd if=/dev/zero of=/mem/x bs=1M count=32; exec sleep 100000"]
    volumeMounts: [{name: mem, mountPath: /mem}]
  volumes: [{name: mem, emptyDir: {medium: Memory}}]
---
apiVersion: v1
kind: Pod
metadata: {name: layer}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: test.local/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, "echo before; dd if=/dev/zero of=/x bs=1M count=8; exec sleep 100000"]
    resources: {limits: {ephemeral-storage: 4Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: critical}
spec:
  priority: 2000000000
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: "test.local/busybox:1", imagePullPolicy: Never, command: [sleep, "100000"]}
`

// TestEviction goes by the figures that each runtime gives.
func TestEviction(t *testing.T) {
	onEach(t, func(n *node) {
		n.apply(evictable)
		n.until("hog", "ready", ready)
		n.until("critical", "ready", ready)
		n.until("layer", "evicted", evicted("Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. "))

		if got := n.log("layer", client.LogOptions{}); !strings.Contains(got, "before\n") {
			t.Errorf("the log of a container that was removed: %q", got)
		}

		n.stop()
		policy := agent.DefaultPolicy()
		policy.Eviction.Thresholds = []eviction.Threshold{{Signal: eviction.MemoryAvailable, Amount: eviction.Amount{Quantity: 1 << 50}}}
		n.policy = &policy
		n.start()
		n.until("hog", "evicted", evicted("The node was low on resource: memory. Threshold quantity: 1Pi, available: "))
		n.until("critical", "ready", ready)
		for _, name := range []string{"hog", "layer", "critical"} {
			if err := n.client.DeletePod(t.Context(), "default", name, nil); err != nil {
				t.Error(err)
			}
			n.until(name, "gone", gone)
		}
		n.clean()
	})
}

func evicted(message string) func(*corev1.Pod) bool {
	return func(p *corev1.Pod) bool {
		return p != nil && p.Status.Phase == corev1.PodFailed && p.Status.Reason == "Evicted" && strings.HasPrefix(p.Status.Message, message)
	}
}
