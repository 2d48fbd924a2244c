package e2etest

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestReadinessGates sets, by the command line, the condition that a pod waits for.
func TestReadinessGates(t *testing.T) { onEach(t, gated) }

func gated(n *node) {
	t := n.T
	podstead := func(args ...string) (string, error) {
		cmd := exec.CommandContext(n.Context(), os.Getenv(podsteadVariable), append([]string{"--run", n.dir}, args...)...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: gated}, spec: {terminationGracePeriodSeconds: 0,
  readinessGates: [{conditionType: example.com/balanced}], containers: [{name: app, image: "test.local/busybox:1", command: [sleep, "12345"]}]}}`)
	n.until("gated", "waiting at its gate", func(p *corev1.Pod) bool {
		return p != nil && condition(p, corev1.PodReady).Reason == "ReadinessGatesNotReady" && condition(p, corev1.ContainersReady).Status == corev1.ConditionTrue
	})
	const how = "podstead condition gated -n default example.com/balanced=True"
	for _, command := range []string{"why gated", "describe pod gated"} {
		if out, err := podstead(strings.Fields(command)...); err != nil || !strings.Contains(out, how) || !strings.Contains(out, "when somebody sets the condition") {
			t.Errorf("podstead %s says %v:\n%s", command, err, out)
		}
	}
	if out, err := podstead("condition", "gated", "Ready=True"); err == nil || !strings.Contains(out, "the node's own") {
		t.Errorf("Ready is set: %s", out)
	}
	if out, err := podstead("condition", "gated", "example.com/balanced"); err == nil || !strings.Contains(out, "is not TYPE=") {
		t.Errorf("a condition without a status: %s", out)
	}
	if out, err := podstead(append(strings.Fields(how)[1:], "--reason", "Added", "--message", "as the third")...); err != nil || out != "" {
		t.Errorf("%s: %v\n%s", how, err, out)
	}
	n.until("gated", "ready", ready)
	n.stop()
	n.start()
	p := n.until("gated", "ready", func(p *corev1.Pod) bool { return p != nil })
	if c := condition(p, "example.com/balanced"); !ready(p) || c.Reason != "Added" || c.Message != "as the third" {
		t.Errorf("after a restart of the agent: %+v", p.Status.Conditions)
	}
	if err := n.client.DeletePod(t.Context(), "default", "gated", nil); err != nil {
		t.Fatal(err)
	}
	n.until("gated", "gone", gone)
	n.clean()
}

func condition(p *corev1.Pod, name corev1.PodConditionType) corev1.PodCondition {
	for _, c := range p.Status.Conditions {
		if c.Type == name {
			return c
		}
	}
	return corev1.PodCondition{}
}
