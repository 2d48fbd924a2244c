package e2etest

import (
	"strings"
	"testing"

	"podstead/agent"
	"podstead/test/host"
)

// TestPodCIDR: pods get their addresses from the range of the configuration. Of
// containerd, CNI plugins would have to be told.
func TestPodCIDR(t *testing.T) {
	host.Require(t)
	n := onPodstead(t)
	n.stop()
	policy := agent.DefaultPolicy()
	policy.PodCIDR = "10.87.7.0/24"
	n.policy = &policy
	n.start()
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: ranged}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: app, image: "test.local/busybox:1", command: [sleep, "12345"]}]}}`)
	p := n.until("ranged", "ready", ready)
	if ip := p.Status.PodIP; !strings.HasPrefix(ip, "10.87.7.") {
		t.Errorf("its address is %s", ip)
	}
	if err := n.client.DeletePod(t.Context(), "default", "ranged", nil); err != nil {
		t.Fatal(err)
	}
	n.until("ranged", "gone", gone)
	n.clean()
}
