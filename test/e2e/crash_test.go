package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// countPod logs numbers, and has a container that ends by itself after a while.
const countPod = `
apiVersion: v1
kind: Pod
metadata: {name: count}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: counter
    image: localhost/busybox:latest
    imagePullPolicy: Never
    command: [sh, -c, "i=0; while true; do echo $i; i=$((i+1)); usleep 5000; done"]
  - name: ends
    image: localhost/busybox:latest
    imagePullPolicy: Never
    command: [sh, -c, "until [ -e /tmp/go ]; do usleep 10000; done; sleep 1; exit 42"]
`

// checkCount demands that the log has every number, once, in order.
func checkCount(t *testing.T, log string) int {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(log, "\n"), "\n")
	for i, line := range lines {
		if line != fmt.Sprint(i) {
			t.Fatalf("line %d of the log is %q", i, line)
		}
	}
	return len(lines)
}

func TestEngineKilled(t *testing.T) {
	n := newNode(t)
	n.start()
	n.loadBusybox()
	n.write("pod.yaml", countPod)
	before := n.await("count", "ready", ready)
	n.do("exec", "count", "-c", "ends", "--", "touch", "/tmp/go")
	engine := n.engine()
	if err := syscall.Kill(engine, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// No wait: a client that calls now waits for the next engine and is served.
	out, err := n.try("get", "pods")
	if err != nil || !strings.Contains(out, "count") {
		t.Errorf("a call right after the engine was killed: %v\n%s", err, out)
	}
	if again := n.engine(); again == engine {
		t.Error("the engine is still the same process")
	}
	after := n.await("count", "aware of the exit", func(p *corev1.Pod) bool {
		for _, s := range p.Status.ContainerStatuses {
			if s.Name == "ends" {
				return s.State.Terminated != nil
			}
		}
		return false
	})
	for _, s := range after.Status.ContainerStatuses {
		switch {
		case s.Name == "ends" && s.State.Terminated.ExitCode != 42:
			t.Errorf("exit code is %d", s.State.Terminated.ExitCode)
		case s.RestartCount != 0 || containerID(after, s.Name) != containerID(before, s.Name):
			t.Errorf("%s was restarted", s.Name)
		}
	}
	seen := checkCount(t, n.do("logs", "count", "-c", "counter"))
	n.eventually("the log goes on", func() error {
		if now := checkCount(t, n.do("logs", "count", "-c", "counter")); now <= seen {
			return fmt.Errorf("%d lines", now)
		}
		return nil
	})
}

func TestSupervisorKilled(t *testing.T) {
	n := newNode(t)
	n.start()
	n.loadBusybox()
	n.write("pod.yaml", countPod)
	before := n.await("count", "ready", ready)
	supervisor := n.supervisor()
	if err := syscall.Kill(supervisor, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.eventually("the node answers again", func() error {
		_, err := n.try("get", "pods")
		return err
	})
	n.do("exec", "count", "-c", "ends", "--", "touch", "/tmp/go")
	after := n.await("count", "aware of an exit", func(p *corev1.Pod) bool {
		for _, s := range p.Status.ContainerStatuses {
			if s.Name == "ends" && s.State.Terminated != nil {
				return true
			}
		}
		return false
	})
	if containerID(after, "counter") != containerID(before, "counter") {
		t.Error("counter was restarted")
	}
	log := n.do("logs", "count", "-c", "counter")
	n.eventually("the log goes on", func() error {
		if now := n.do("logs", "count", "-c", "counter"); len(now) <= len(log) {
			return fmt.Errorf("%d bytes", len(now))
		}
		return nil
	})
}

func TestNodeStoppedAndStarted(t *testing.T) {
	n := newNode(t)
	n.start()
	n.loadBusybox()
	n.write("pod.yaml", countPod)
	before := n.await("count", "ready", ready)
	n.stop()
	n.start()
	after := n.await("count", "ready", ready)
	for _, name := range []string{"counter", "ends"} {
		if containerID(after, name) != containerID(before, name) {
			t.Errorf("%s was restarted", name)
		}
	}
	checkCount(t, n.do("logs", "count", "-c", "counter"))
	if out := n.do("exec", "count", "-c", "counter", "--", "echo", "still there"); out != "still there\n" {
		t.Errorf("exec gives %q", out)
	}
}
