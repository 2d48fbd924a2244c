package e2etest

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent"
	"podstead/agent/client"
	"podstead/test/host"
)

const everything = `
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {greeting: hello, "file.txt": one}
---
apiVersion: v1
kind: Secret
metadata: {name: token}
stringData: {password: s3cret}
---
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
spec:
  terminationGracePeriodSeconds: 3
  hostname: myhost
  hostAliases: [{ip: 10.1.2.3, hostnames: [db]}]
  securityContext: {fsGroup: 2000, runAsUser: 1000, runAsGroup: 1000}
  initContainers:
  - name: init
    image: test.local/busybox:1
    command: [sh, -c, "echo from-init > /shared/init; mkdir -p /shared/sub; echo sub > /shared/sub/f"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
  - name: app
    image: test.local/busybox:1
    command: [sh, -c]
    args:
    - |
      echo "greeting=$(GREETING) pod=$(NAME) ip=$(IP) all=$ALL_greeting limit=$LIMIT"
      echo "init=$(cat /shared/init) conf=$(cat /conf/file.txt) secret=$(cat /secret/password) sub=$(cat /sub/f)"
      echo "labels=$(cat /info/labels) host=$(hostname) id=$(id)"
      grep -q '10.1.2.3.*db' /etc/hosts && echo alias
      touch /mem/x /shared/y && ls -ln /shared/y
      httpd -f -p 8080 -h /conf & 
      trap 'echo term; exit 0' TERM
      while true; do sleep 0.1; done
    env:
    - {name: GREETING, valueFrom: {configMapKeyRef: {name: conf, key: greeting}}}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    envFrom: [{prefix: ALL_, configMapRef: {name: conf}}]
    ports: [{name: http, containerPort: 8080}]
    resources: {limits: {memory: 64Mi, cpu: 500m}}
    readinessProbe: {timeoutSeconds: 300, httpGet: {path: /file.txt, port: http}, periodSeconds: 1}
    volumeMounts:
    - {name: shared, mountPath: /shared}
    - {name: shared, mountPath: /sub, subPath: sub}
    - {name: mem, mountPath: /mem}
    - {name: conf, mountPath: /conf}
    - {name: secret, mountPath: /secret}
    - {name: info, mountPath: /info}
  volumes:
  - {name: shared, emptyDir: {}}
  - {name: mem, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: conf, configMap: {name: conf}}
  - {name: secret, secret: {secretName: token, defaultMode: 0400}}
  - name: info
    downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}
`

func TestPod(t *testing.T) { onEach(t, podLives) }

func podLives(n *node) {
	t := n.T
	n.apply(everything)
	p := n.until("web", "ready", ready)
	n.logged("web", "app",
		"greeting=hello pod=web ip="+p.Status.PodIP+" all=hello limit=64",
		"init=from-init conf=one secret=s3cret sub=sub",
		`labels=app="web" host=myhost id=uid=1000`, "2000(extra)", "alias", " 1000     2000 ")
	if got := n.exec("web", "app", "cat", "/conf/file.txt"); got != "one" {
		t.Errorf("exec: %q", got)
	}
	// A changed object reaches the files of a running container.
	n.apply(strings.Replace(everything, `"file.txt": one`, `"file.txt": two`, 1))
	deadline := time.Now().Add(patience)
	for n.exec("web", "app", "cat", "/conf/file.txt") != "two" {
		if time.Now().After(deadline) {
			t.Fatal("the file does not change")
		}
	}
	// A restart of the agent changes nothing.
	id := p.Status.ContainerStatuses[0].ContainerID
	if n.ours() {
		n.beginToFail()
	}
	n.stop()
	n.start()
	p = n.until("web", "ready again", ready)
	if got := p.Status.ContainerStatuses[0]; got.ContainerID != id || got.RestartCount != 0 {
		t.Errorf("container %s, restarts %d; before it was %s", got.ContainerID, got.RestartCount, id)
	}
	if n.ours() {
		n.hasFailed()
	}
	if err := n.client.DeletePod(t.Context(), "default", "web", nil); err != nil {
		t.Fatal(err)
	}
	n.until("web", "gone", gone)
	n.clean()
}

func TestManifestFile(t *testing.T) { onEach(t, manifestLives) }

func manifestLives(n *node) {
	t := n.T
	pod := func(text string) string {
		return `{apiVersion: v1, kind: Pod, metadata: {name: file}, spec: {terminationGracePeriodSeconds: 1, containers: [
  {name: app, image: "test.local/busybox:1", command: [sh, -c, "echo ` + text + `; sleep 1000"]},
  {name: other, image: "test.local/busybox:1", command: [sleep, "1000"]}]}}`
	}
	write := func(content string) {
		t.Helper()
		if err := os.MkdirAll(n.manifests, 0o755); err != nil { // created after the agent began
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(n.manifests, "file.yaml"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var server *manifestServer
	if n.ours() {
		server = n.serve()
		server.say(`{apiVersion: v1, kind: Pod, metadata: {name: served}, spec: {terminationGracePeriodSeconds: 1, containers: [
  {name: app, image: "test.local/busybox:1", command: [sleep, "12345"]}]}}`)
	}
	write(pod("one"))
	n.until("file", "ready", ready)
	n.line("file", "app")
	write("kind: Pod\nnonsense: true\n")
	n.until("file", "told of the broken edit", func(p *corev1.Pod) bool {
		return strings.Contains(n.events("file"), "goes on as it was")
	})
	write(pod("two"))
	p := n.until("file", "restarted", func(p *corev1.Pod) bool {
		return ready(p) && p.Status.ContainerStatuses[0].RestartCount == 1
	})
	if p.Status.ContainerStatuses[1].RestartCount != 0 {
		t.Error("the container that was not edited was restarted")
	}
	if got := n.line("file", "app"); got != "two\n" {
		t.Errorf("log %q", got)
	}
	if got := n.log("file", client.LogOptions{Container: "app", Previous: true}); got != "one\n" {
		t.Errorf("previous log %q", got)
	}
	if err := os.Remove(filepath.Join(n.manifests, "file.yaml")); err != nil {
		t.Fatal(err)
	}
	n.until("file", "gone", gone)
	if server != nil {
		n.servedLives(server)
	}
	n.clean()
}

// servedLives has the server of a pod go away, and take the pod back.
func (n *node) servedLives(server *manifestServer) {
	n.Helper()
	id := n.until("served", "ready", ready).Status.ContainerStatuses[0].ContainerID
	n.stop()
	server.say("")
	n.start()
	if p := n.until("served", "ready without its server", ready); p.Status.ContainerStatuses[0].ContainerID != id {
		n.Error("the pod of the server began anew")
	}
	server.say("{apiVersion: v1, kind: List, items: []}")
	n.until("served", "gone", gone)
}

// manifestServer says the same to everybody; nothing is an error.
type manifestServer struct{ text atomic.Value }

func (m *manifestServer) say(text string) { m.text.Store(text) }

// serve starts the agent anew, with a server of manifests.
func (n *node) serve() *manifestServer {
	m := &manifestServer{}
	m.say("{apiVersion: v1, kind: List, items: []}")
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		text := m.text.Load().(string)
		if text == "" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = io.WriteString(w, text)
	}))
	n.Cleanup(s.Close)
	n.stop()
	n.url = agent.ManifestURL{Address: s.URL, Period: 50 * time.Millisecond}
	n.start()
	return m
}

func TestCrashAndTerminationMessage(t *testing.T) { onEach(t, crashes) }

func crashes(n *node) {
	t := n.T
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: crash}, spec: {terminationGracePeriodSeconds: 1, containers: [
  {name: app, image: "test.local/busybox:1", command: [sh, -c, "echo why > /dev/termination-log; exit 7"]},
  {name: log, image: "test.local/busybox:1", terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, "echo last words; exit 3"]}]}}`)
	ended := []struct {
		code    int32
		message string
	}{{7, "why\n"}, {3, "last words\n"}}
	n.until("crash", "in back-off", func(p *corev1.Pod) bool {
		if p == nil {
			return false
		}
		for i, c := range p.Status.ContainerStatuses {
			if c.State.Waiting == nil || c.State.Waiting.Reason != "CrashLoopBackOff" || c.RestartCount < 1 {
				return false
			}
			switch last := c.LastTerminationState.Terminated; {
			case last != nil && last.ExitCode == ended[i].code && last.Message == ended[i].message:
			case !n.ours() && last != nil && last.Message == "": // told before its log was written: the next time may be better
				return false
			default:
				t.Errorf("%s ended as %+v", c.Name, last)
			}
		}
		return true
	})
	if err := n.client.DeletePod(t.Context(), "default", "crash", nil); err != nil {
		t.Fatal(err)
	}
	n.until("crash", "gone", gone)
	n.clean()
}

// containerd 1.6 knows no image volumes.
func TestImageVolume(t *testing.T) {
	host.Require(t)
	n := onPodstead(t)
	n.apply(`{apiVersion: v1, kind: Pod, metadata: {name: img}, spec: {terminationGracePeriodSeconds: 1, containers: [
  {name: app, image: "test.local/busybox:1", command: [sh, -c, "ls /img/busybox; touch /img/x && echo writable; sleep 1000"],
   volumeMounts: [{name: v, mountPath: /img, subPath: bin}]}],
  volumes: [{name: v, image: {reference: "test.local/busybox:1"}}]}}`)
	p := n.until("img", "ready", ready)
	if m := p.Status.ContainerStatuses[0].VolumeMounts; len(m) != 1 || m[0].VolumeStatus == nil || m[0].VolumeStatus.Image.ImageRef == "" ||
		m[0].VolumeStatus.Image.ImageRef != p.Status.ContainerStatuses[0].ImageID {
		t.Errorf("the status has %+v of the mounts of an image %s", m, p.Status.ContainerStatuses[0].ImageID)
	}
	if got := n.line("img", "app"); got != "/img/busybox\n" {
		t.Errorf("log %q", got)
	}
	if got := n.log("img", client.LogOptions{}); strings.Contains(got, "writable") {
		t.Errorf("log %q", got)
	}
	if err := n.client.DeletePod(t.Context(), "default", "img", nil); err != nil {
		t.Fatal(err)
	}
	n.until("img", "gone", gone)
	n.clean()
}

const claimPod = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: db}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {fsGroup: 2000, runAsUser: 1000, runAsGroup: 1000}
  containers:
  - name: app
    image: test.local/busybox:1
    command: [sh, -c, "echo run >>/data/log; echo later >/disk/f; cat /data/log /disk/before; echo end; exec sleep 1000"]
    volumeMounts: [{name: data, mountPath: /data}, {name: disk, mountPath: /disk}, {name: scratch, mountPath: /scratch}]
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: data}}
  - {name: disk, persistentVolumeClaim: {claimName: disk}}
  - name: scratch
    ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}}
`

// Data of claims outlives the pod; a pod whose claim is not there waits for it.
func TestClaims(t *testing.T) { onEach(t, claimsLast) }

func claimsLast(n *node) {
	t := n.T
	disk := t.TempDir()
	if err := os.WriteFile(filepath.Join(disk, "before"), []byte("was there\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	disks := `
apiVersion: v1
kind: PersistentVolume
metadata: {name: disk1}
spec: {capacity: {storage: 5Gi}, accessModes: [ReadWriteOnce], storageClassName: disks, local: {path: ` + disk + `}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: disk}
spec: {accessModes: [ReadWriteOnce], storageClassName: disks, resources: {requests: {storage: 1Gi}}}
`
	n.apply(claimPod)
	n.until("db", "waiting for its claim", func(p *corev1.Pod) bool {
		return p != nil && strings.Contains(n.events("db"), `persistentvolumeclaim "disk" not found`)
	})
	n.apply(disks)
	n.until("db", "ready", ready)
	deadline := time.Now().Add(patience)
	for log := ""; !strings.Contains(log, "end\n"); log = n.log("db", client.LogOptions{}) {
		if time.Now().After(deadline) {
			t.Fatalf("the log is %q", log)
		}
	}
	if got := n.log("db", client.LogOptions{}); got != "run\nwas there\nend\n" {
		t.Errorf("the first pod says %q", got)
	}
	for i := range 2 {
		if err := n.client.DeletePod(t.Context(), "default", "db", nil); err != nil {
			t.Fatal(err)
		}
		n.until("db", "gone", gone)
		if i == 1 {
			break
		}
		n.apply(claimPod)
		n.until("db", "ready", ready)
		for got := ""; got != "run\nrun\n"; got = n.exec("db", "app", "cat", "/data/log") {
			if time.Now().After(deadline) {
				t.Fatalf("the second pod finds %q", got)
			}
		}
	}
	if data, err := os.ReadFile(filepath.Join(disk, "f")); err != nil || string(data) != "later\n" {
		t.Errorf("on the disk is %q, %v", data, err)
	}
	n.clean()
}

// containerd 1.6 knows no user namespaces.
func TestUserNamespaces(t *testing.T) {
	host.Require(t)
	n := onPodstead(t)
	n.stop()
	policy := agent.DefaultPolicy()
	policy.IDsPerPod = 131072
	n.policy = &policy
	n.start()
	for _, name := range []string{"one", "two"} {
		n.apply(`{apiVersion: v1, kind: ConfigMap, metadata: {name: conf}, data: {f: hello}}
---
{apiVersion: v1, kind: Pod, metadata: {name: ` + name + `}, spec: {hostUsers: false, terminationGracePeriodSeconds: 1, containers: [
  {name: app, image: "test.local/busybox:1", securityContext: {procMount: Unmasked},
   command: [sh, -c, "echo $(cat /proc/self/uid_map); touch /data/x; stat -c %u /data/x /conf/f /etc/hosts /; echo bye >/dev/termination-log; exec sleep 1000"],
   volumeMounts: [{name: data, mountPath: /data}, {name: conf, mountPath: /conf}]}],
  volumes: [{name: data, emptyDir: {}}, {name: conf, configMap: {name: conf}}]}}`)
	}
	maps := map[string]bool{}
	for _, name := range []string{"one", "two"} {
		n.until(name, "ready", ready)
		out := strings.Split(n.line(name, "app"), "\n")
		fields := strings.Fields(out[0])
		if len(fields) != 3 || fields[0] != "0" || fields[1] == "0" || fields[2] != "131072" || maps[fields[1]] {
			t.Errorf("pod %s has the IDs %q", name, out[0])
			continue
		}
		maps[fields[1]] = true
		deadline := time.Now().Add(patience)
		for got := ""; !strings.HasSuffix(got, "\n0\n0\n0\n0\n"); got = n.log(name, client.LogOptions{}) {
			if time.Now().After(deadline) {
				t.Fatalf("files belong to %q", got)
			}
		}
		if err := n.client.DeletePod(t.Context(), "default", name, nil); err != nil {
			t.Fatal(err)
		}
		n.until(name, "gone", gone)
	}
	n.clean()
}
