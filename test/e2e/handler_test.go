package e2e

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

const classPod = `
apiVersion: v1
kind: Pod
metadata: {name: classy}
spec:
  runtimeClassName: runc
  shareProcessNamespace: true
  restartPolicy: Never
  initContainers:
  - name: first
    image: localhost/busybox:latest
    imagePullPolicy: Never
    command: [sh, -c, "echo first >/v/f"]
    volumeMounts: [{name: v, mountPath: /v}]
  containers:
  - name: web
    image: localhost/busybox:latest
    imagePullPolicy: Never
    command: [sh, -c, "cat /v/f; mkdir /www; echo hi >/www/index.html; exec httpd -f -p 80 -h /www"]
    volumeMounts: [{name: v, mountPath: /v}]
    readinessProbe: {timeoutSeconds: 300, exec: {command: [test, -e, /www/index.html]}, periodSeconds: 1}
    resources: {limits: {memory: 64Mi, cpu: 500m}}
  - name: other
    image: localhost/busybox:latest
    imagePullPolicy: Never
    command: [sh, -c, "until wget -q -O /dev/null http://127.0.0.1/; do sleep 0.05; done; ps; exit 5"]
  volumes: [{name: v, emptyDir: {}}]
`

// TestRuntimeClass runs a pod of a manifest with runc, beside our own: its
// containers share network, processes and volumes, are probed and exec'd into.
func TestRuntimeClass(t *testing.T) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Skip("runc is not installed")
	}
	n := newNode(t)
	n.start("--engine-config", writeFile(t, "engine.yaml", "handlers: [{name: runc, path: "+runc+"}]"))
	n.loadBusybox()
	n.write("pod.yaml", classPod)
	n.write("none.yaml", strings.NewReplacer("classy", "none", "ClassName: runc", "ClassName: no-such").Replace(classPod))
	n.await("classy", "ready, and the other container has ended", func(p *corev1.Pod) bool {
		ended := false
		for _, s := range p.Status.ContainerStatuses {
			ended = ended || s.Name == "other" && s.State.Terminated != nil && s.State.Terminated.ExitCode == 5
			if s.Name == "web" && !s.Ready {
				return false
			}
		}
		return ended
	})
	if out := n.do("logs", "classy", "-c", "web"); out != "first\n" {
		t.Errorf("log of web: %q", out)
	}
	if out := n.do("logs", "classy", "-c", "other"); !strings.Contains(out, "httpd -f") {
		t.Errorf("the containers do not see each other's processes: %q", out)
	}
	if out := n.do("exec", "classy", "-c", "web", "--", "cat", "/www/index.html"); out != "hi\n" {
		t.Errorf("exec: %q", out)
	}
	n.eventually("the pod of an unknown class says why", func() error {
		out, err := n.try("describe", "pod", "none")
		if err == nil && !strings.Contains(out, `"no-such" is not configured`) {
			return errors.New(out)
		}
		return err
	})
}
