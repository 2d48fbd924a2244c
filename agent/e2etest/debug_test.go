package e2etest

import (
	"bytes"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/remotecommand"

	"podstead/agent/client"
)

// TestDebug joins a running pod, by the API and by its manifest.
func TestDebug(t *testing.T) { onEach(t, debugged) }

func debugged(n *node) {
	t := n.T
	pod := func(extra string) string {
		return `{apiVersion: v1, kind: Pod, metadata: {name: shy}, spec: {terminationGracePeriodSeconds: 1, containers: [
  {name: app, image: "test.local/busybox:1", command: [sh, -c, "hidden=1 exec sleep 12345"]}]` + extra + `}}`
	}
	n.apply(pod(""))
	before := n.until("shy", "ready", ready).Status.ContainerStatuses[0].ContainerID
	common := corev1.EphemeralContainerCommon{Name: "look", Image: busyboxImage, Stdin: true,
		Command:         []string{"sh", "-c", "read x; echo $x; busybox pidof sleep; cat /proc/1/environ | busybox tr '\\0' '\\n' | busybox grep hidden; exit 3"},
		SecurityContext: &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_PTRACE"}}}}
	if err := n.client.Debug(t.Context(), "default", "shy", corev1.EphemeralContainer{EphemeralContainerCommon: common, TargetContainerName: "other"}); err == nil {
		t.Error("a target that is not there is taken")
	}
	if err := n.client.Debug(t.Context(), "default", "shy", corev1.EphemeralContainer{EphemeralContainerCommon: common, TargetContainerName: "app"}); err != nil {
		t.Fatal(err)
	}
	n.until("shy", "looked into", func(p *corev1.Pod) bool { return ephemeral(p, 0).State.Running != nil })
	n.stop() // it outlives the agent
	n.start()
	n.until("shy", "looked into still", func(p *corev1.Pod) bool { return ephemeral(p, 0).State.Running != nil })
	if got := n.exec("shy", "look", "busybox", "pidof", "sleep"); got != "1\n" {
		t.Errorf("exec sees the target as process %q", got)
	}
	var out bytes.Buffer
	err := n.client.Attach(t.Context(), "default", "shy", client.ExecOptions{Container: "look",
		Streams: remotecommand.StreamOptions{Stdin: strings.NewReader("hello\n"), Stdout: &out}})
	if err != nil {
		t.Error(err)
	}
	p := n.until("shy", "no more looked into", func(p *corev1.Pod) bool { return ephemeral(p, 0).State.Terminated != nil })
	if code := ephemeral(p, 0).State.Terminated.ExitCode; code != 3 || !ready(p) {
		t.Errorf("it ended with %d, the pod is ready: %t", code, ready(p))
	}
	// containerd may report the end before its log is written.
	deadline := time.Now().Add(patience)
	for got := ""; got != "hello\n1\nhidden=1\n"; got = n.log("shy", client.LogOptions{Container: "look"}) {
		if time.Now().After(deadline) {
			t.Fatalf("the log is %q, attached was seen %q", got, out.String())
		}
	}
	n.apply(pod(`, ephemeralContainers: [{name: second, image: "test.local/busybox:1", command: [echo, seen]}]`))
	p = n.until("shy", "looked into by its manifest", func(p *corev1.Pod) bool {
		return len(p.Status.EphemeralContainerStatuses) == 2 && ephemeral(p, 0).State.Terminated != nil
	})
	if got := n.line("shy", "second"); got != "seen\n" {
		t.Errorf("the log is %q", got)
	}
	if got := ephemeral(p, 1); got.Name != "look" || got.RestartCount != 0 || got.State.Terminated == nil {
		t.Errorf("the first one is %+v", got)
	}
	if app := p.Status.ContainerStatuses[0]; app.ContainerID != before || app.RestartCount != 0 {
		t.Error("the container that was looked into is another one")
	}
	if err := n.client.DeletePod(t.Context(), "default", "shy", nil); err != nil {
		t.Fatal(err)
	}
	n.until("shy", "gone", gone)
	n.clean()
}

func ephemeral(p *corev1.Pod, i int) corev1.ContainerStatus {
	if p == nil || len(p.Status.EphemeralContainerStatuses) <= i {
		return corev1.ContainerStatus{}
	}
	return p.Status.EphemeralContainerStatuses[i]
}
