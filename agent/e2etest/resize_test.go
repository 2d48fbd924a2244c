package e2etest

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestResize changes cpu and memory of running pods, of containers and of a pod
// as a whole.
func TestResize(t *testing.T) { onEach(t, resized) }

func resized(n *node) {
	t := n.T
	pod := func(cpu, memory, whole string) string {
		return `{apiVersion: v1, kind: Pod, metadata: {name: sized}, spec: {terminationGracePeriodSeconds: 1, ` + whole + ` containers: [
  {name: app, image: "test.local/busybox:1", command: [sleep, "12345"],
   resources: {requests: {cpu: ` + cpu + `, memory: ` + memory + `}, limits: {cpu: 800m, memory: ` + memory + `}}}]}}`
	}
	n.apply(pod("100m", "64Mi", ""))
	p := n.until("sized", "ready", ready)
	id := p.Status.ContainerStatuses[0].ContainerID
	n.memoryLimits(p, "67108864", "67108864")
	n.apply(pod("100m", "128Mi", ""))
	p = n.until("sized", "bigger", hasMemory("128Mi"))
	n.memoryLimits(p, "134217728", "134217728")
	n.stop()
	n.start()
	n.apply(pod("200m", "32Mi", ""))
	p = n.until("sized", "smaller", hasMemory("32Mi"))
	n.memoryLimits(p, "33554432", "33554432")
	n.apply(pod("200m", "32Mi", "resources: {limits: {memory: 256Mi}},"))
	p = n.until("sized", "bounded as a whole", func(p *corev1.Pod) bool {
		return ready(p) && p.Status.Resources != nil && resizes(p) == ""
	})
	n.memoryLimits(p, "268435456", "33554432")
	n.apply(pod("200m", "512Ti", ""))
	p = n.until("sized", "refused", func(p *corev1.Pod) bool {
		return p != nil && strings.HasPrefix(resizes(p), "PodResizePending Infeasible")
	})
	if c := p.Status.ContainerStatuses[0]; c.ContainerID != id || c.RestartCount != 0 || !ready(p) {
		t.Errorf("container %s, %d restarts; before it was %s", c.ContainerID, c.RestartCount, id)
	}
	if err := n.client.DeletePod(t.Context(), "default", "sized", nil); err != nil {
		t.Fatal(err)
	}
	n.until("sized", "gone", gone)
	n.clean()
}

func hasMemory(limit string) func(*corev1.Pod) bool {
	return func(p *corev1.Pod) bool {
		if !ready(p) || resizes(p) != "" {
			return false
		}
		r := p.Status.ContainerStatuses[0].Resources
		return r != nil && r.Limits.Memory().String() == limit
	}
}

// resizes are the conditions of a resize under way.
func resizes(p *corev1.Pod) string {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodResizePending || c.Type == corev1.PodResizeInProgress {
			return strings.Join([]string{string(c.Type), c.Reason, c.Message}, " ")
		}
	}
	return ""
}

// memoryLimits checks what the kernel has been told of a pod and its container.
func (n *node) memoryLimits(p *corev1.Pod, ofPod, ofContainer string) {
	n.Helper()
	_, id, _ := strings.Cut(p.Status.ContainerStatuses[0].ContainerID, "://")
	var pod, container string
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		name := filepath.Base(path)
		if err != nil || name != "memory.limit_in_bytes" && name != "memory.max" {
			return nil
		}
		data, _ := os.ReadFile(path)
		switch dir := filepath.Base(filepath.Dir(path)); {
		case dir == "pod"+string(p.UID):
			pod = strings.TrimSpace(string(data))
		case dir == id:
			container = strings.TrimSpace(string(data))
		}
		return nil
	})
	if pod != ofPod || container != ofContainer {
		n.Errorf("the pod has %q bytes of memory, its container %q; want %s, %s", pod, container, ofPod, ofContainer)
	}
}
