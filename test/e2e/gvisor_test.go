package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"podstead/test/host"
)

const gvisorPod = `
apiVersion: v1
kind: Pod
metadata: {name: CLASS}
spec:
  runtimeClassName: CLASS
  restartPolicy: Never
  containers:
  - name: web
    image: localhost/busybox:latest
    imagePullPolicy: Never
    command: [sh, -c, "dmesg | grep -i gvisor; mkdir /www; echo hi >/www/index.html; exec httpd -f -p 80 -h /www"]
    readinessProbe: {timeoutSeconds: 300, exec: {command: [test, -e, /www/index.html]}, periodSeconds: 1}
  - name: other
    image: localhost/busybox:latest
    imagePullPolicy: Never
    command: [sh, -c, "until wget -q -O /dev/null http://127.0.0.1/; do sleep 0.05; done; exit 5"]
`

// TestGVisorClasses runs pods of manifests with gVisor, by its command line and
// by its shim: the containers of a pod share its network, are probed and exec'd
// into.
func TestGVisorClasses(t *testing.T) {
	runsc := os.Getenv("PODSTEAD_TEST_RUNSC")
	if runsc == "" {
		t.Skip("PODSTEAD_TEST_RUNSC does not name a runsc: see \"make test-gvisor\"")
	}
	const root = "/run/podstead-runsc"
	n := newNode(t)
	t.Cleanup(func() {
		// runsc keeps an empty network namespace there for all of its sandboxes.
		if err := errors.Join(host.UnmountBelow(root), os.RemoveAll(root)); err != nil {
			t.Error(err)
		}
	})
	options := writeFile(t, "runsc.toml", fmt.Sprintf("binary_name = %q\nroot = %q\n[runsc_config]\nplatform = \"systrap\"\n", runsc, root))
	n.start("--engine-config", writeFile(t, "engine.yaml", fmt.Sprintf(`handlers:
- {name: by-command, path: %s, args: [--platform=systrap, --network=host]}
- {name: by-shim, type: shim, path: %s, configPath: %s}
`, runsc, filepath.Join(filepath.Dir(runsc), "containerd-shim-runsc-v1"), options)))
	n.loadBusybox()
	classes := []string{"by-command", "by-shim"}
	for _, class := range classes {
		n.write(class+".yaml", strings.ReplaceAll(gvisorPod, "CLASS", class))
	}
	for _, class := range classes {
		n.await(class, "ready, and the other container has ended", func(p *corev1.Pod) bool {
			ended := false
			for _, s := range p.Status.ContainerStatuses {
				ended = ended || s.Name == "other" && s.State.Terminated != nil && s.State.Terminated.ExitCode == 5
				if s.Name == "web" && !s.Ready {
					return false
				}
			}
			return ended
		})
		if out := n.do("logs", class, "-c", "web"); !strings.Contains(out, "gVisor") {
			t.Errorf("%s: whose kernel is it? %q", class, out)
		}
		if out := n.do("exec", class, "-c", "web", "--", "cat", "/www/index.html"); out != "hi\n" {
			t.Errorf("%s: exec: %q", class, out)
		}
	}
}
