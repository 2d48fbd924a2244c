package e2e

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestEngineKilledWithShim kills the engine while a container of a shim's pod is
// about to end: no line of the other one's log is lost, the exit code is right,
// and no container was started anew.
func TestEngineKilledWithShim(t *testing.T) {
	shim, err := exec.LookPath("containerd-shim-runc-v2")
	if err != nil {
		t.Skip("containerd-shim-runc-v2 is not installed")
	}
	n := newNode(t)
	n.start("--engine-config", writeFile(t, "engine.yaml", "handlers: [{name: shim, type: shim, path: "+shim+"}]"))
	n.loadBusybox()
	n.write("pod.yaml", strings.Replace(countPod, "spec:\n", "spec:\n  runtimeClassName: shim\n", 1))
	n.await("count", "ready", ready)
	n.do("exec", "count", "-c", "ends", "--", "touch", "/tmp/go")
	if err := syscall.Kill(n.engine(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	after := n.await("count", "one container has ended", func(p *corev1.Pod) bool {
		for _, s := range p.Status.ContainerStatuses {
			if s.Name == "ends" && s.State.Terminated != nil {
				return true
			}
		}
		return false
	})
	for _, s := range after.Status.ContainerStatuses {
		if s.RestartCount != 0 || s.Name == "ends" && s.State.Terminated.ExitCode != 42 || s.Name == "counter" && s.State.Running == nil {
			t.Errorf("%+v", s)
		}
	}
	if out := n.do("exec", "count", "-c", "counter", "--", "echo", "here"); out != "here\n" {
		t.Errorf("exec: %q", out)
	}
	checkCount(t, n.do("logs", "count", "-c", "counter"))
	if err := os.Remove(n.manifests + "/pod.yaml"); err != nil {
		t.Fatal(err)
	}
	n.awaitGone("count")
	if left, _ := os.ReadDir("/run/containerd/s"); len(left) > 0 {
		t.Errorf("sockets are left: %v", left)
	}
}
