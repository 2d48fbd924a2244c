package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// webPod serves what its ConfigMap says, on a host port.
const webPod = `
apiVersion: v1
kind: ConfigMap
metadata: {name: page}
data: {index.html: "hello from a config map"}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 5
  initContainers:
  - name: prepare
    image: localhost/busybox:latest
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "cp /page/index.html /shared/ && echo prepared"]
    volumeMounts: [{name: page, mountPath: /page}, {name: shared, mountPath: /shared}]
  containers:
  - name: httpd
    image: localhost/busybox:latest
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "echo serving $GREETING; trap 'echo bye; exit 0' TERM; httpd -f -p 8080 -h /shared & wait"]
    env: [{name: GREETING, value: %s}]
    ports: [{containerPort: 8080, hostPort: 18080}]
    readinessProbe: {timeoutSeconds: 300, httpGet: {path: /index.html, port: 8080}, periodSeconds: 1}
    volumeMounts: [{name: shared, mountPath: /shared}]
  - name: side
    image: localhost/busybox:latest
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "echo side; exec sleep 1000"]
  volumes:
  - {name: page, configMap: {name: page}}
  - {name: shared, emptyDir: {}}
`

func TestManifestLivesItsLife(t *testing.T) {
	n := newNode(t)
	n.start()
	n.loadBusybox()
	n.write("web.yaml", fmt.Sprintf(webPod, "one"))
	pod := n.await("web", "ready", ready)

	if body, err := get("http://127.0.0.1:18080/index.html"); err != nil || body != "hello from a config map" {
		t.Errorf("host port answers %q, %v", body, err)
	}
	if body, err := get("http://" + pod.Status.PodIP + ":8080/index.html"); err != nil || body != "hello from a config map" {
		t.Errorf("pod address answers %q, %v", body, err)
	}
	if pod.Status.InitContainerStatuses[0].State.Terminated == nil {
		t.Errorf("init container: %+v", pod.Status.InitContainerStatuses[0].State)
	}
	if pod.Status.QOSClass != corev1.PodQOSBestEffort || pod.Spec.NodeName != "testnode" {
		t.Errorf("QoS class %s, node %s", pod.Status.QOSClass, pod.Spec.NodeName)
	}

	t.Run("get", func(t *testing.T) {
		out := n.do("get", "pods", "-o", "wide")
		for _, want := range []string{"web", "2/2", "Running", pod.Status.PodIP, "testnode", "18080->8080/TCP"} {
			if !strings.Contains(out, want) {
				t.Errorf("get -o wide lacks %q:\n%s", want, out)
			}
		}
		if out := n.do("get", "pods", "web", "-o", "yaml"); !strings.Contains(out, "kind: Pod\n") || !strings.Contains(out, "phase: Running") {
			t.Errorf("get -o yaml:\n%s", out)
		}
	})
	t.Run("describe", func(t *testing.T) {
		out := n.do("describe", "pod", "web")
		for _, want := range []string{"httpd", "side", "prepare", "web.yaml", "Started", "Ready"} {
			if !strings.Contains(out, want) {
				t.Errorf("describe lacks %q:\n%s", want, out)
			}
		}
	})
	t.Run("why", func(t *testing.T) {
		out := n.do("why", "web", "--calls")
		for _, want := range []string{"running, for ", "create sandbox", "RunPodSandbox", "httpd: start", "StartContainer", "prepare: ended with 0", "httpd: ready", "▇"} {
			if !strings.Contains(out, want) {
				t.Errorf("why lacks %q:\n%s", want, out)
			}
		}
	})
	t.Run("logs", func(t *testing.T) {
		if out := n.do("logs", "web", "-c", "httpd"); out != "serving one\n" {
			t.Errorf("log of httpd is %q", out)
		}
		if out := n.do("logs", "web", "-c", "prepare"); out != "prepared\n" {
			t.Errorf("log of the init container is %q", out)
		}
		if out := n.do("logs", "web"); out != "serving one\n" {
			t.Errorf("the log of the pod's first container is %q", out)
		}
	})
	t.Run("exec", func(t *testing.T) {
		if out := n.do("exec", "web", "-c", "side", "--", "hostname"); out != "web\n" {
			t.Errorf("hostname is %q", out)
		}
		_, err := n.try("exec", "web", "-c", "side", "--", "sh", "-c", "exit 7")
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 7 {
			t.Errorf("exit 7 ends exec with %v", err)
		}
		cmd := n.command(t.Context(), "exec", "-i", "web", "-c", "side", "--", "cat")
		cmd.Stdin = strings.NewReader("through\nand back\n")
		if out, err := cmd.Output(); err != nil || string(out) != "through\nand back\n" {
			t.Errorf("cat gives %q, %v", out, err)
		}
	})
	t.Run("image rm", func(t *testing.T) {
		if _, err := n.try("image", "rm", "localhost/busybox:latest"); err == nil || !strings.Contains(err.Error(), "used by the pod default/web;") {
			t.Errorf("an image that a pod uses is removed: %v", err)
		}
		if _, err := n.try("image", "rm", "localhost/none:1"); err == nil || !strings.Contains(err.Error(), "not found") {
			t.Errorf("an image that is not there is removed: %v", err)
		}
		n.do("image", "rm", "-f", "localhost/none:1")
	})
	t.Run("delete", func(t *testing.T) {
		if _, err := n.try("delete", "pod", "web"); err == nil || !strings.Contains(err.Error(), "web.yaml") {
			t.Errorf("a pod of a file is ended by removing the file, and that is to be said: %v", err)
		}
	})

	// The same again: nothing happens. Another environment: that container alone
	// is made anew.
	n.write("web.yaml", fmt.Sprintf(webPod, "one"))
	n.write("web.yaml", fmt.Sprintf(webPod, "two"))
	after := n.await("web", "ready with a new httpd", func(p *corev1.Pod) bool {
		id := containerID(p, "httpd")
		return ready(p) && id != "" && id != containerID(pod, "httpd")
	})
	if containerID(after, "side") != containerID(pod, "side") {
		t.Error("an edit of one container restarted the other")
	}
	if out := n.do("logs", "web", "-c", "httpd"); out != "serving two\n" {
		t.Errorf("log of the new httpd is %q", out)
	}
	if out := n.do("logs", "-p", "web", "-c", "httpd"); !strings.Contains(out, "serving one\n") || !strings.Contains(out, "bye\n") {
		t.Errorf("log of the old httpd is %q: it was to end gracefully", out)
	}

	if err := os.Remove(filepath.Join(n.manifests, "web.yaml")); err != nil {
		t.Fatal(err)
	}
	n.awaitGone("web")
	if _, err := get("http://127.0.0.1:18080/"); err == nil {
		t.Error("the host port is still served")
	}
}

func TestBadManifestsAreNamedAndHarmless(t *testing.T) {
	n := newNode(t)
	n.start()
	n.loadBusybox()
	good := `{apiVersion: v1, kind: Pod, metadata: {name: good}, spec: {containers: [{name: a, image: "localhost/busybox:latest", imagePullPolicy: Never, command: [sleep, "1000"]}]}}`
	n.write("good.yaml", good)
	pod := n.await("good", "ready", ready)

	bad := filepath.Join(t.TempDir(), "bad.yaml")
	for _, c := range []struct{ what, manifest, want string }{
		{"unknown field", strings.Replace(good, "command", "comand", 1), "comand"},
		{"no image", strings.Replace(good, `image: "localhost/busybox:latest", `, "", 1), "spec.containers[0].image"},
		{"bad name", strings.Replace(good, "name: good", "name: Not_Good", 1), "metadata.name"},
		{"unknown kind", strings.Replace(good, "kind: Pod", "kind: Deployment", 1), "Deployment"},
		{"absent volume", strings.Replace(good, "command", "volumeMounts: [{name: nix, mountPath: /x}], command", 1), "volumeMounts[0]"},
		{"no YAML", "{{", "bad.yaml"},
	} {
		if err := os.WriteFile(bad, []byte(c.manifest), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := n.try("up", "-d", "-f", bad)
		if err == nil || c.want != "bad.yaml" && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: up says %v, want it to name %q", c.what, err, c.want)
		}
		n.write("good.yaml", c.manifest)
	}
	again, err := n.pod("good")
	if err != nil || containerID(again, "a") != containerID(pod, "a") {
		t.Errorf("a broken edit changed what runs: %v", err)
	}
	if out := n.do("get", "problems"); !strings.Contains(out, "good.yaml") || !strings.Contains(out, "what was there before stays in force") {
		t.Errorf("get problems says:\n%s", out)
	}
	if out := n.do("describe", "node"); !strings.Contains(out, "Problems:") || !strings.Contains(out, "good.yaml") {
		t.Errorf("describe node says:\n%s", out)
	}
}

func TestAbsentObjectIsWaitedFor(t *testing.T) {
	n := newNode(t)
	n.start()
	n.loadBusybox()
	n.write("pod.yaml", `
apiVersion: v1
kind: Pod
metadata: {name: waits}
spec:
  containers:
  - name: a
    image: localhost/busybox:latest
    imagePullPolicy: Never
    command: [sh, -c, "echo $WORD $(cat /secret/word); exec sleep 1000"]
    env: [{name: WORD, valueFrom: {configMapKeyRef: {name: later, key: word}}}]
    volumeMounts: [{name: s, mountPath: /secret}]
  volumes: [{name: s, secret: {secretName: hidden}}]
`)
	n.eventually("describe names what is absent", func() error {
		out, err := n.try("describe", "pod", "waits")
		if err == nil && !strings.Contains(out, "hidden") {
			err = fmt.Errorf("it says:\n%s", out)
		}
		return err
	})
	n.write("later.yaml", `
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: later}, data: {word: open}}
- {apiVersion: v1, kind: Secret, metadata: {name: hidden}, stringData: {word: sesame}}
`)
	n.await("waits", "ready", ready)
	n.eventually("its log", func() error {
		if out := n.do("logs", "waits"); out != "open sesame\n" {
			return fmt.Errorf("is %q", out)
		}
		return nil
	})
}

func TestContainersAreRestarted(t *testing.T) {
	n := newNode(t)
	n.start()
	n.loadBusybox()
	n.write("pods.yaml", `
apiVersion: v1
kind: Pod
metadata: {name: crashes}
spec:
  containers:
  - {name: a, image: "localhost/busybox:latest", imagePullPolicy: Never, command: [sh, -c, "echo run; exit 3"]}
---
apiVersion: v1
kind: Pod
metadata: {name: ends}
spec:
  restartPolicy: Never
  containers:
  - {name: a, image: "localhost/busybox:latest", imagePullPolicy: Never, command: [sh, -c, "echo done > /dev/termination-log"]}
---
apiVersion: v1
kind: Pod
metadata: {name: hungry}
spec:
  restartPolicy: Never
  containers:
  - name: a
    image: localhost/busybox:latest
    imagePullPolicy: Never
    command: [sh, -c, "tail /dev/zero"]
    resources: {limits: {memory: 20Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: sick}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: a
    image: localhost/busybox:latest
    imagePullPolicy: Never
    command: [sleep, "1000"]
    livenessProbe: {exec: {command: [test, "!", -e, /tmp/ill]}, periodSeconds: 1, timeoutSeconds: 300, failureThreshold: 1}
`)
	crashes := n.await("crashes", "restarted and in back-off", func(p *corev1.Pod) bool {
		s := p.Status.ContainerStatuses
		return len(s) == 1 && s[0].RestartCount >= 1 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "CrashLoopBackOff"
	})
	if last := crashes.Status.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.ExitCode != 3 || last.Reason != "Error" {
		t.Errorf("last state is %+v", last)
	}
	ends := n.await("ends", "succeeded", phase(corev1.PodSucceeded))
	if end := ends.Status.ContainerStatuses[0].State.Terminated; end == nil || end.Reason != "Completed" || end.Message != "done\n" {
		t.Errorf("ended as %+v", end)
	}
	hungry := n.await("hungry", "failed", phase(corev1.PodFailed))
	if end := hungry.Status.ContainerStatuses[0].State.Terminated; end == nil || end.Reason != "OOMKilled" || end.ExitCode != 137 {
		t.Errorf("ended as %+v", end)
	}
	n.await("sick", "ready", ready)
	n.do("exec", "sick", "--", "touch", "/tmp/ill")
	n.await("sick", "restarted by its liveness probe", func(p *corev1.Pod) bool {
		s := p.Status.ContainerStatuses
		return len(s) == 1 && s[0].RestartCount == 1 && ready(p)
	})
}
