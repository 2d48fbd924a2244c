package e2etest

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"podstead/agent"
	"podstead/agent/internal/eviction"
)

// TestAllocatable reserves so much of the machine's memory that a pod uses up
// what is left, and goes for it.
func TestAllocatable(t *testing.T) { onEach(t, allocatableHolds) }

func allocatableHolds(n *node) {
	t := n.T
	nodes, err := n.client.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rest := nodes.Items[0].Status.Capacity.Memory().DeepCopy()
	rest.Sub(resource.MustParse("200Mi"))
	policy := agent.DefaultPolicy()
	policy.Node.System = corev1.ResourceList{corev1.ResourceMemory: rest}
	policy.Eviction.Thresholds = []eviction.Threshold{{Signal: eviction.MemoryAvailable, Amount: eviction.Amount{Quantity: 100 << 20}}}
	n.stop()
	n.policy = &policy
	n.start()
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: small}, spec: {terminationGracePeriodSeconds: 1, containers: [
  {name: c, image: "test.local/busybox:1", command: [sleep, "12345"], resources: {requests: {memory: 50Mi}}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: large}, spec: {terminationGracePeriodSeconds: 1, containers: [
  {name: c, image: "test.local/busybox:1", command: [sleep, "12345"], resources: {requests: {memory: 60Mi}}}]}}`)
	// What is free is 200Mi without the 100Mi that eviction keeps: one of them fits.
	waits := func(p *corev1.Pod) bool { return p != nil && p.Status.Reason == "OutOfmemory" }
	first, second := "small", "large"
	p := n.until(first, "decided", func(p *corev1.Pod) bool { return ready(p) || waits(p) })
	if waits(p) {
		first, second = second, first
	}
	n.until(first, "ready", ready)
	n.until(second, "without room", waits)
	if err := n.client.DeletePod(t.Context(), "default", first, nil); err != nil {
		t.Fatal(err)
	}
	n.until(first, "gone", gone)
	n.until(second, "ready when there is room", ready)
	if n.ours() {
		n.preempts(second)
	}
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: hog}, spec: {terminationGracePeriodSeconds: 1, containers: [
  {name: c, image: "test.local/busybox:1", command: [sh, -c, "dd if=/dev/zero of=/mem/x bs=1M count=150; exec sleep 12345"], volumeMounts: [{name: mem, mountPath: /mem}]}],
  volumes: [{name: mem, emptyDir: {medium: Memory}}]}}`)
	n.until("hog", "evicted", evicted("The node was low on resource: memory. Threshold quantity: 100Mi, available: "))
	n.until(second, "ready", ready)
	for _, name := range []string{second, "hog"} {
		if err := n.client.DeletePod(t.Context(), "default", name, nil); err != nil {
			t.Error(err)
		}
		n.until(name, "gone", gone)
	}
	n.clean()
}

// preempts has a critical pod take the place of another, and give it back.
func (n *node) preempts(second string) {
	n.Helper()
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: critical}, spec: {priorityClassName: system-node-critical, terminationGracePeriodSeconds: 1, containers: [
  {name: c, image: "test.local/busybox:1", command: [sleep, "12345"], resources: {requests: {memory: 70Mi}}}]}}`)
	n.until("critical", "ready in place of another", ready)
	n.until(second, "preempted", func(p *corev1.Pod) bool {
		return p != nil && p.Status.Phase == corev1.PodFailed && p.Status.Reason == "Preempting"
	})
	if err := n.client.DeletePod(n.Context(), "default", "critical", nil); err != nil {
		n.Fatal(err)
	}
	n.until("critical", "gone", gone)
	n.until(second, "back", ready)
}
