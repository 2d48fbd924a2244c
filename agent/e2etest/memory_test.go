package e2etest

import (
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent"
	"podstead/cgroup"
	"podstead/test/host"
)

const memoryPods = `
{kind: Pod, apiVersion: v1, metadata: {name: sure}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: "test.local/busybox:1", imagePullPolicy: Never, command: [sleep, "100000"],
  resources: {limits: {cpu: 100m, memory: 64Mi}}}]}}
---
{kind: Pod, apiVersion: v1, metadata: {name: maybe}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: "test.local/busybox:1", imagePullPolicy: Never, command: [sleep, "100000"],
  resources: {requests: {memory: 32Mi}, limits: {memory: 64Mi}}}]}}
---
{kind: Pod, apiVersion: v1, metadata: {name: any}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: "test.local/busybox:1", imagePullPolicy: Never, command: [sleep, "100000"]}]}}
`

// TestMemoryQoS: what pods request of memory is left to them by the kernel, in all
// groups above them, and containers are slowed down before their limit.
func TestMemoryQoS(t *testing.T) {
	host.Require(t)
	cgroups, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	if !cgroups.Unified() {
		t.Skip("needs cgroup v2: make test-vm-agent")
	}
	n := onPodstead(t)
	n.stop()
	policy := agent.DefaultPolicy()
	policy.Memory.Reserve, policy.Memory.Throttle = true, 0.5
	n.policy = &policy
	n.start()
	n.apply(memoryPods)
	file := func(dir, name string) string {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		}
		return name + " " + strings.TrimSpace(string(data))
	}
	tree := cgroups.Group(path.Join(host.Cgroup(), "kubepods")).Dir()
	all := func(dir string) string {
		return file(dir, "memory.min") + " " + file(dir, "memory.low")
	}
	for _, c := range []struct{ pod, class, group, high string }{
		{"sure", "", "memory.min 67108864 memory.low 0", "memory.high max"},
		{"maybe", "burstable", "memory.min 0 memory.low 33554432", "memory.high 50331648"},
		{"any", "besteffort", "memory.min 0 memory.low 0", ""},
	} {
		p := n.until(c.pod, "ready", ready)
		dir := filepath.Join(tree, c.class, "pod"+string(p.UID))
		if got := all(dir); got != c.group {
			t.Errorf("the group of %s: %s, want %s", c.pod, got, c.group)
		}
		_, id, _ := strings.Cut(p.Status.ContainerStatuses[0].ContainerID, "://")
		own, _ := filepath.Glob(filepath.Join(dir, "*"+id+"*"))
		if len(own) != 1 {
			t.Fatalf("groups of %s: %v", id, own)
		}
		if got := all(own[0]); got != c.group {
			t.Errorf("the container of %s: %s, want %s", c.pod, got, c.group)
		}
		if got := file(own[0], "memory.high"); c.high != "" && got != c.high {
			t.Errorf("the container of %s: %s, want %s", c.pod, got, c.high)
		}
	}
	for dir, want := range map[string]string{tree: "memory.min 67108864 memory.low 33554432", filepath.Join(tree, "burstable"): "memory.min 0 memory.low 33554432",
		filepath.Dir(tree): "memory.min 67108864 memory.low 33554432"} {
		if got := all(dir); got != want {
			t.Errorf("%s: %s, want %s", dir, got, want)
		}
	}
	for _, name := range []string{"sure", "maybe", "any"} {
		if err := n.client.DeletePod(t.Context(), "default", name, nil); err != nil {
			t.Fatal(err)
		}
		n.until(name, "gone", func(p *corev1.Pod) bool { return p == nil })
	}
	n.clean()
}

// TestQOSReserved: pods of lower classes leave what those of better ones request.
func TestQOSReserved(t *testing.T) {
	host.Require(t)
	cgroups, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	n := onPodstead(t)
	n.stop()
	policy := agent.DefaultPolicy()
	policy.KeepMemory = 50
	n.policy = &policy
	n.start()
	n.apply(memoryPods)
	for _, name := range []string{"sure", "maybe", "any"} {
		n.until(name, "ready", ready)
	}
	nodes, err := n.client.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := uint64(nodes.Items[0].Status.Allocatable.Memory().Value())
	const mib, page = 1 << 20, 1 << 12
	for class, want := range map[string]uint64{"burstable": all - 32*mib, "besteffort": all - 32*mib - 16*mib} {
		g := cgroups.Group(path.Join(host.Cgroup(), "kubepods", class))
		stats, err := g.Stats()
		if err != nil || stats.MemoryLimitBytes > want || stats.MemoryLimitBytes+page < want {
			t.Errorf("%s may use %d, want %d: %v", class, stats.MemoryLimitBytes, want, err)
		}
	}
	for _, name := range []string{"sure", "maybe", "any"} {
		if err := n.client.DeletePod(t.Context(), "default", name, nil); err != nil {
			t.Fatal(err)
		}
		n.until(name, "gone", gone)
	}
	n.clean()
}
