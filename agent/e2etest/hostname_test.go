package e2etest

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent"
)

// TestHostnameAsFQDN: the kernel of a pod knows its name in full, if it fits.
func TestHostnameAsFQDN(t *testing.T) { onEach(t, namedInFull) }

func namedInFull(n *node) {
	t := n.T
	n.stop()
	policy := agent.DefaultPolicy()
	policy.ClusterDomain = "cluster.local"
	n.policy = &policy
	n.start()
	pod := func(hostname string) string {
		return `{apiVersion: v1, kind: Pod, metadata: {name: named}, spec: {terminationGracePeriodSeconds: 0, setHostnameAsFQDN: true, subdomain: sub, hostname: ` + hostname + `,
  containers: [{name: app, image: "test.local/busybox:1", command: [sleep, "12345"]}]}}`
	}
	fits := strings.Repeat("a", 34)
	n.apply(pod(fits + "a")) // 65 characters with its domain
	n.until("named", "refused its name", func(p *corev1.Pod) bool {
		return p != nil && strings.Contains(n.events("named"), "FailedCreatePodSandBox Failed to create pod sandbox: failed to construct FQDN from pod hostname and cluster domain")
	})
	n.apply(pod(fits))
	n.until("named", "ready", ready)
	fqdn := fits + ".sub.default.svc.cluster.local"
	if got := n.exec("named", "app", "hostname"); got != fqdn+"\n" || len(fqdn) != 64 {
		t.Errorf("its hostname is %q, want %q", got, fqdn)
	}
	if got := n.exec("named", "app", "cat", "/etc/hosts"); !strings.Contains(got, "\t"+fqdn+"\t"+fits+"\n") {
		t.Errorf("%s is not in its /etc/hosts:\n%s", fqdn, got)
	}
	if err := n.client.DeletePod(t.Context(), "default", "named", nil); err != nil {
		t.Fatal(err)
	}
	n.until("named", "gone", gone)
	n.clean()
}
