package e2etest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent"
	"podstead/image/imagetest"
)

// TestCredentials pulls from a registry that wants a password: with a pod's
// secret, whose image is not for pods without one, and by an exec plugin.
func TestCredentials(t *testing.T) {
	onEach(t, func(n *node) {
		img := imagetest.Busybox(n)
		registry := imagetest.PrivateRegistry(n, map[string]imagetest.Image{"team/app:1": img, "node/app:1": img}, "me", "secret")
		n.stop()
		n.providers = n.plugin(registry)
		n.start()

		pod := func(name, image, policy, secret string) string {
			return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  imagePullSecrets: [%s]
  containers:
  - {name: c, image: "%s/%s", imagePullPolicy: %s, command: [sleep, "100000"]}
---
`, name, secret, registry, image, policy)
		}
		n.apply(pod("owner", "team/app:1", "IfNotPresent", "{name: registry}") + `
apiVersion: v1
kind: Secret
metadata: {name: registry}
type: kubernetes.io/dockerconfigjson
stringData:
  .dockerconfigjson: '{"auths": {"` + registry + `": {"username": "me", "password": "secret"}}}'
`)
		n.until("owner", "ready", ready)
		n.apply(pod("without", "team/app:1", "IfNotPresent", "") + pod("never", "team/app:1", "Never", ""))
		n.until("without", "refused by the registry", waitsFor("ErrImagePull"))
		n.until("never", "refused", waitsFor("ErrImageNeverPull"))
		n.apply(pod("same", "team/app:1", "Never", "{name: registry}") + pod("plugin", "node/app:1", "IfNotPresent", ""))
		n.until("same", "ready", ready)
		n.until("plugin", "ready", ready)
		for _, name := range []string{"owner", "without", "never", "same", "plugin"} {
			if err := n.client.DeletePod(n.Context(), "default", name, nil); err != nil {
				n.Error(err)
			}
			n.until(name, "gone", gone)
		}
		n.clean()
	})
}

// plugin makes a credential provider that knows the password of one repository.
func (n *node) plugin(registry string) []*agent.CredentialProvider {
	n.Helper()
	dir := n.TempDir()
	for name, content := range map[string]string{
		"plugin": `#!/bin/sh
cat >/dev/null
echo '{"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
"cacheKeyType": "Registry", "auth": {"` + registry + `": {"username": "me", "password": "secret"}}}'
`,
		"config.yaml": `
kind: CredentialProviderConfig
apiVersion: kubelet.config.k8s.io/v1
providers:
- name: plugin
  matchImages: ["` + registry + `/node"]
  defaultCacheDuration: 1h
  apiVersion: credentialprovider.kubelet.k8s.io/v1
`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
			n.Fatal(err)
		}
	}
	out, err := agent.ReadCredentialProviders(filepath.Join(dir, "config.yaml"), dir)
	if err != nil {
		n.Fatal(err)
	}
	return out
}

func waitsFor(reason string) func(*corev1.Pod) bool {
	return func(p *corev1.Pod) bool {
		return p != nil && len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].State.Waiting != nil &&
			p.Status.ContainerStatuses[0].State.Waiting.Reason == reason
	}
}
