package e2etest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"podstead/agent/client"
	"podstead/agent/internal/csi/csitest"
	"podstead/image/imagetest"
	"podstead/test/host"
	runtimenode "podstead/test/node"
)

// program is a node as a person has it, engine and all in its own process.
type program struct {
	*testing.T
	node   *runtimenode.Node
	client *client.Client
}

func startProgram(t *testing.T, args ...string) *program {
	host.Require(t)
	p := &program{T: t, node: runtimenode.Run(t, os.Getenv(podsteadVariable), "node", args...)}
	p.client = client.New(filepath.Join(p.node.Run, "agent.sock"))
	t.Cleanup(func() { p.client.Close() })
	return p
}

// says is what a command of the program prints.
func (p *program) says(command ...string) string {
	p.Helper()
	cmd := exec.CommandContext(p.Context(), os.Getenv(podsteadVariable), append([]string{"--run", p.node.Run}, command...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%s%v", out, err)
	}
	return string(out)
}

// until runs a command until what it prints has all patterns.
func (p *program) until(command string, patterns ...string) string {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	for {
		out := p.says(strings.Fields(command)...)
		missing := slices.DeleteFunc(slices.Clone(patterns), func(s string) bool { return regexp.MustCompile(s).MatchString(out) })
		if len(missing) == 0 {
			return out
		}
		select {
		case <-ctx.Done():
			p.Fatalf("podstead %s does not say %q:\n%s", command, missing, out)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// registry serves images; those of slow/ stop in the middle of a layer until
// release is closed, those of private/ are for nobody.
func troubledRegistry(t *testing.T, img imagetest.Image, release <-chan struct{}) string {
	images := imagetest.Handler(t, map[string]imagetest.Image{"slow/app:1": img, "private/app:1": img}, nil)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.Contains(r.URL.Path, "/private/"):
			http.Error(w, `{"errors": [{"code": "DENIED", "message": "not for you"}]}`, http.StatusForbidden)
		case strings.HasSuffix(r.URL.Path, "/slow/app/blobs/"+img.Layers[0].Digest()):
			w.Header().Set("Content-Length", fmt.Sprint(len(img.Layers[0].Data)))
			w.Write(img.Layers[0].Data[:256<<10])
			w.(http.Flusher).Flush()
			select {
			case <-release:
			case <-r.Context().Done():
			}
			w.Write(img.Layers[0].Data[256<<10:])
		default:
			images.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server.Listener.Addr().String()
}

// hungDriver is a CSI driver that does not answer until release is closed.
type hungDriver struct {
	csitest.Driver
	release <-chan struct{}
}

func (d *hungDriver) NodePublishVolume(ctx context.Context, r *spec.NodePublishVolumeRequest) (*spec.NodePublishVolumeResponse, error) {
	select {
	case <-d.release:
	case <-ctx.Done():
	}
	return d.Driver.NodePublishVolume(ctx, r)
}

// troubled are pods each of which waits for something else.
const troubled = `
{kind: Pod, apiVersion: v1, metadata: {name: slow}, spec: {containers: [{name: c, image: "%[1]s/slow/app:1"}]}}
---
{kind: Pod, apiVersion: v1, metadata: {name: refused}, spec: {containers: [{name: c, image: "%[1]s/private/app:1"}]}}
---
{kind: Pod, apiVersion: v1, metadata: {name: nosecret}, spec: {imagePullSecrets: [{name: regcred}], containers: [{name: c, image: "%[1]s/private/app:1"}]}}
---
{kind: Pod, apiVersion: v1, metadata: {name: noconfig}, spec: {containers: [{name: c, image: test.local/busybox:1}],
  volumes: [{name: conf, configMap: {name: settings}}]}}
---
{kind: Pod, apiVersion: v1, metadata: {name: novariable}, spec: {containers: [{name: c, image: test.local/busybox:1,
  env: [{name: A, valueFrom: {secretKeyRef: {name: credentials, key: a}}}]}]}}
---
{kind: PersistentVolumeClaim, apiVersion: v1, metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], storageClassName: none-such, resources: {requests: {storage: 1Gi}}}}
---
{kind: Pod, apiVersion: v1, metadata: {name: noclaim}, spec: {containers: [{name: c, image: test.local/busybox:1}],
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]}}
---
{kind: Pod, apiVersion: v1, metadata: {name: driver}, spec: {containers: [{name: c, image: test.local/busybox:1}],
  volumes: [{name: data, csi: {driver: hung.csi.local}}]}}
---
{kind: Pod, apiVersion: v1, metadata: {name: hostpath}, spec: {containers: [{name: c, image: test.local/busybox:1}],
  volumes: [{name: data, hostPath: {path: %[2]s, type: Directory}}]}}
---
{kind: Pod, apiVersion: v1, metadata: {name: stuck}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: test.local/busybox:1,
  command: [cat, /data/hang], volumeMounts: [{name: data, mountPath: /data}]}], volumes: [{name: data, hostPath: {path: %[3]s}}]}}
---
{kind: Pod, apiVersion: v1, metadata: {name: probes}, spec: {terminationGracePeriodSeconds: 0, containers: [
  {name: unready, image: test.local/busybox:1, command: [sleep, "100000"], readinessProbe: {periodSeconds: 1, timeoutSeconds: 300, exec: {command: [sh, -c, "echo not today; exit 1"]}}},
  {name: unstarted, image: test.local/busybox:1, command: [sleep, "100000"], startupProbe: {periodSeconds: 1, timeoutSeconds: 300, failureThreshold: 1000, exec: {command: [sh, -c, "echo still loading; exit 1"]}}},
  {name: unwell, image: test.local/busybox:1, command: [sleep, "100000"], livenessProbe: {periodSeconds: 1, timeoutSeconds: 300, failureThreshold: 1000, exec: {command: [sh, -c, "echo feverish; exit 1"]}}}]}}
---
{kind: Pod, apiVersion: v1, metadata: {name: crash}, spec: {containers: [{name: c, image: test.local/busybox:1, command: ["false"]}]}}
---
{kind: Pod, apiVersion: v1, metadata: {name: big}, spec: {containers: [{name: c, image: test.local/busybox:1, resources: {requests: {cpu: "10000"}}}]}}
---
{kind: Secret, apiVersion: v1, metadata: {name: token}, stringData: {password: s3cret-of-secret}}
---
{kind: Pod, apiVersion: v1, metadata: {name: fine}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: test.local/busybox:1, command: [httpd, -f, -p, "8080"],
  env: [{name: A, valueFrom: {secretKeyRef: {name: token, key: password}}}, {name: B, value: s3cret-of-manifest}],
  readinessProbe: {tcpSocket: {port: 8080}}}]}}
`

// quoting says a secret on its command line, which is no program.
const quoting = `
---
{kind: Pod, apiVersion: v1, metadata: {name: quoting}, spec: {containers: [{name: c, image: test.local/busybox:1, command: ["/$(A)"],
  env: [{name: A, valueFrom: {secretKeyRef: {name: token, key: password}}}]}]}}
`

// clock matches a time of day.
const clock = `\d\d:\d\d:\d\d`

// TestWhy: a pod that waits says at which stage it is and since when, what for,
// and what happens next.
func TestWhy(t *testing.T) {
	root := t.TempDir()
	p := startProgram(t, "--root-dir", root)
	release := make(chan struct{})
	hung, letGo := mountHungFS(t, mkdir(t))
	hung.hung.Store(true)
	reading, letReadersGo := mountHungFS(t, mkdir(t))
	freed := false
	free := func() {
		if !freed {
			freed = true
			close(release)
			letGo()
			letReadersGo()
		}
	}
	t.Cleanup(free) // before the node ends, which would wait for them
	driver := &hungDriver{csitest.Driver{Name: "hung.csi.local", Data: t.TempDir()}, release}
	driver.Serve(t, root, driver)
	busybox := imagetest.Busybox(t)
	if _, err := p.client.LoadImages(t.Context(), bytes.NewReader(imagetest.ArchiveBytes(t, busybox, busyboxImage))); err != nil {
		t.Fatal(err)
	}
	large := imagetest.New(t, imagetest.Config{}, imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "large", Mode: 0o644, Data: noise(1 << 20)})})
	registry := troubledRegistry(t, large, release)
	if _, err := p.client.Apply(t.Context(), fmt.Appendf(nil, troubled+quoting, registry, hung.dir, reading.dir)); err != nil {
		t.Fatal(err)
	}
	digest := large.Layers[0].Digest()[:19]
	for _, c := range []struct {
		pod  string
		says []string
	}{
		{"slow", []string{`^start c, for \d+[smh]`, `c: Pulling: fetching ` + registry + `/slow/app:1 from ` + registry + `: ` + digest + `… fetching 0\.[1-9] of 1\.0 MiB`, `\(for \d+[smh]\)`, `next: create and start c`}},
		{"refused", []string{`^back-off, for \d+[smh]`, `c: (ErrImagePull|ImagePullBackOff): .*403.*not for you.*\(for \d+[smh]; until ` + clock + `, in \d+s\)`, `next: pull the image of c again at ` + clock}},
		{"nosecret", []string{`c: .*403.*image pull secret "regcred" is not there.*until ` + clock, `next: pull the image of c again at ` + clock + `, or as soon as an object`}},
		{"noconfig", []string{`^back-off, for \d+[smh]`, `FailedMount: .*volume "conf" : configmap "settings" not found.*until ` + clock, `next: try the volumes of the pod again at ` + clock + `, or as soon as an object`}},
		{"novariable", []string{`^back-off`, `c: CreateContainerConfigError: env A: secret "credentials" not found.*until ` + clock, `next: try c again at ` + clock + `, or as soon as an object`}},
		{"noclaim", []string{`^back-off`, `volume "data" : no persistent volume fits the claim default/data \(class "none-such".*until ` + clock, `next: try the volumes of the pod again`}},
		{"driver", []string{`^prepare, for \d+[smh]`, `InProgress: prepare: volume data \(CSI driver hung.csi.local\) \(for \d+[smh]\)`, `next: create the sandbox`}},
		{"hostpath", []string{`^prepare, for \d+[smh]`, `InProgress: prepare: volume data \(` + hung.dir + `\) \(for \d+[smh]\)`, `next: create the sandbox`}},
		{"probes", []string{`^running, not ready, for \d+[smh]`,
			`container unready: NotReady: readiness probe failed (once|\d+ times) in a row, last: not today; every 1s \(for \d+[smh]; until ` + clock,
			`container unstarted: NotStarted: startup probe failed .*, last: still loading; after 1000 the container is restarted; every 1s`,
			`container unwell: Unhealthy: liveness probe failed .*, last: feverish; after 1000 the container is restarted; every 1s`,
			`next: (readiness|startup|liveness) probe of un(ready|started|well) at ` + clock}},
		{"crash", []string{`^back-off`, `c: CrashLoopBackOff: back-off \d+s restarting failed container=c .*\(for \d+[smh]; until ` + clock, `next: restart c at ` + clock}},
		{"big", []string{`^waiting for the node, for \d+[smh]`, `OutOfcpu: .*10000000.*\(for \d+[smh]\)`, `next: start when there is room`}},
		{"quoting", []string{`start FAILED: (RunContainerError|CreateContainerError): .*/…`}},
		{"fine", []string{`^running, for \d+[smh]`, `\+.*create sandbox .*▇`, `\+.*c: start .*▇`, `\+.*c: readiness probe`, `\+.*c: ready`}},
	} {
		p.until("why "+c.pod, c.says...)
	}
	p.until("describe pod probes", `Stage: +running, not ready, for`, `Next: +(readiness|startup|liveness) probe of`, `Waiting: +container unready: NotReady: readiness probe failed`)

	// A process that the kernel holds: first it has its grace, then it is named.
	p.until("why stuck", `^running, for`)
	if err := p.client.DeletePod(t.Context(), "default", "stuck", nil); err != nil {
		t.Fatal(err)
	}
	p.until("why stuck", `^ending: kill c, for \d+[smh]`, `c: InProgress: kill: StopContainer \(for \d+[smh]\)`,
		`Stuck: process cat \(pid \d+\) does not leave the kernel, in the system call (read|sendfile) \(.*\)`, `next: c was killed; it ends when the kernel lets it`)

	free() // an agent in the kernel's hands could not be killed
	p.flightSurvives("fine")
	p.until("why slow", `CrashLoopBackOff|RunContainerError|CreateContainerError`) // its image is there
	p.deleteAll()
}

func mkdir(t *testing.T) string {
	dir, err := os.MkdirTemp("/run", "podstead-test-hung-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	return dir
}

// noise is what does not compress.
func noise(n int) []byte {
	out := make([]byte, n)
	x := uint32(1)
	for i := range out {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		out[i] = byte(x)
	}
	return out
}

// flightSurvives: the recorder's entries fit into each other, outlive the agent
// that made them, and have no secrets.
func (p *program) flightSurvives(name string) {
	p.Helper()
	before, err := p.client.Flight(p.Context(), "default", name)
	if err != nil {
		p.Fatal(err)
	}
	p.plausible(before)
	engine := slices.DeleteFunc(runtimenode.Processes(os.Getenv(podsteadVariable), p.node.Run), func(pid int) bool {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		return exe != os.Getenv(podsteadVariable)
	})
	if len(engine) != 1 {
		p.Fatalf("engines: %v", engine)
	}
	if err := syscall.Kill(engine[0], syscall.SIGKILL); err != nil {
		p.Fatal(err)
	}
	p.until("why "+name, `^running, for`, `c: ready`)
	after, err := p.client.Flight(p.Context(), "default", name)
	if err != nil {
		p.Fatal(err)
	}
	if len(after) < len(before) || fmt.Sprint(after[:len(before)]) != fmt.Sprint(before) {
		p.Errorf("before: %v\nafter: %v", before, after)
	}
	files, _ := filepath.Glob(filepath.Join(p.node.State, "state/agent/pods/*/flight.jsonl"))
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // as that of the pod that ends
			p.Error(err)
		}
		if bytes.Contains(data, []byte("s3cret")) {
			p.Errorf("%s has a secret:\n%s", file, data)
		}
	}
	if len(files) < 10 {
		p.Errorf("flight recorders: %v", files)
	}
}

// plausible: steps follow each other and calls are within them.
func (p *program) plausible(entries []client.FlightEntry) {
	p.Helper()
	find := func(kind, what string) client.FlightEntry {
		i := slices.IndexFunc(entries, func(e client.FlightEntry) bool { return e.Kind == kind && e.What == what })
		if i < 0 {
			p.Fatalf("no %s %s in %v", kind, what, entries)
		}
		return entries[i]
	}
	end := func(e client.FlightEntry) time.Time { return e.At.Add(e.Took) }
	prepare, sandbox, start := find(client.FlightStep, "prepare"), find(client.FlightStep, "create sandbox"), find(client.FlightStep, "start")
	probe, ready := find(client.FlightStep, "readiness probe"), find(client.FlightNews, "ready")
	if sandbox.At.Before(end(prepare)) {
		p.Errorf("%v began before %v ended", sandbox, prepare)
	}
	// The runtime's events may come before its answers, and what follows with them.
	if start.At.Before(sandbox.At) || ready.At.Before(start.At) {
		p.Errorf("%v, %v, %v are out of order", sandbox, start, ready)
	}
	for call, step := range map[string]client.FlightEntry{"RunPodSandbox": sandbox, "CreateContainer": start, "StartContainer": start} {
		if c := find(client.FlightCall, call); c.At.Before(step.At) || end(c).After(end(step)) {
			p.Errorf("%v is not within %v", c, step)
		}
	}
	if end(probe).After(ready.At) {
		p.Errorf("%v ended after %v", probe, ready)
	}
}

func (p *program) deleteAll() {
	p.Helper()
	list, err := p.client.Pods(p.Context(), "")
	if err != nil {
		p.Fatal(err)
	}
	var zero time.Duration
	for _, pod := range list.Items {
		// Who was on its way out already may have gone meanwhile.
		if err := p.client.DeletePod(p.Context(), pod.Namespace, pod.Name, &zero); err != nil && !apierrors.IsNotFound(err) {
			p.Error(err)
		}
	}
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	gone := errors.New("all are gone")
	left := map[string]bool{}
	err = p.client.Watch(ctx, "", "", func(c client.Change) error {
		switch {
		case c.Pod != nil && c.Type != client.Gone:
			left[c.Pod.Name] = true
		case c.Pod != nil:
			delete(left, c.Pod.Name)
		}
		if len(left) == 0 {
			return gone
		}
		return nil
	})
	if !errors.Is(err, gone) {
		p.Errorf("pods %v are left: %v", left, err)
	}
}
