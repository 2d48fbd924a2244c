package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// nomkdir is a profile of a user's own: all calls but those that make
// directories, which fail with an errno that no kernel gives for them.
const nomkdir = `{
  "defaultAction": "SCMP_ACT_ALLOW",
  "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]
}`

const seccompPod = `
apiVersion: v1
kind: Pod
metadata: {name: seccomp}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {seccompProfile: {type: Localhost, localhostProfile: mine/nomkdir.json}}
  containers:
  - name: bound
    image: localhost/busybox:latest
    imagePullPolicy: Never
    command: [sh, -c, "mkdir /tmp/x; grep Seccomp: /proc/self/status; exec sleep 1000"]
  - name: free
    image: localhost/busybox:latest
    imagePullPolicy: Never
    securityContext: {seccompProfile: {type: Unconfined}}
    command: [sh, -c, "mkdir -p /tmp/x && echo made; grep Seccomp: /proc/self/status; exec sleep 1000"]
`

const noProfilePod = `
apiVersion: v1
kind: Pod
metadata: {name: absent}
spec:
  containers:
  - name: c
    image: localhost/busybox:latest
    imagePullPolicy: Never
    securityContext: {seccompProfile: {type: Localhost, localhostProfile: mine/absent.json}}
`

// A profile file from the node's directory filters the calls of the containers
// that ask for it and of what is run in them later.
func TestSeccompLocalhostProfile(t *testing.T) {
	n := newNode(t)
	dir := filepath.Join(n.state, "agent", "seccomp", "mine")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "nomkdir.json"), []byte(nomkdir), 0o644); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.loadBusybox()
	n.write("seccomp.yaml", seccompPod)
	n.write("absent.yaml", noProfilePod)
	n.await("seccomp", "ready", ready)
	for container, want := range map[string][]string{
		"bound": {"mkdir: can't create directory '/tmp/x': Operation not supported", "Seccomp:\t2"},
		"free":  {"made", "Seccomp:\t0"},
	} {
		for _, want := range want {
			n.eventually("log of "+container, func() error {
				if out := n.do("logs", "seccomp", "-c", container); !strings.Contains(out, want) {
					return fmt.Errorf("it lacks %q:\n%s", want, out)
				}
				return nil
			})
		}
	}
	if out, err := n.try("exec", "seccomp", "-c", "bound", "--", "mkdir", "/tmp/y"); err == nil || !strings.Contains(out+err.Error(), "not supported") {
		t.Errorf("exec of mkdir in the bound container: %q, %v", out, err)
	}
	n.await("absent", "refused for its profile's sake", func(p *corev1.Pod) bool {
		w := p.Status.ContainerStatuses
		return len(w) == 1 && w[0].State.Waiting != nil && strings.Contains(w[0].State.Waiting.Message, "mine/absent.json")
	})
}
