package hostile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// podYAML is a pod whose only container runs a script.
func podYAML(name, script, more string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: localhost/busybox:latest
    imagePullPolicy: Never
    command: [sh, -c, %q]
%s`, name, script, more)
}

// put puts a file into the manifest directory in one step.
func (n *node) put(name, content string) {
	n.Helper()
	tmp := filepath.Join(n.manifests, ".tmp-"+name)
	if err := os.WriteFile(tmp, []byte(content), 0o644); err != nil {
		n.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(n.manifests, name)); err != nil {
		n.Fatal(err)
	}
}

// await waits until a pod is as check wants it.
func (n *node) await(name, what string, check func(*corev1.Pod) bool) (pod *corev1.Pod) {
	n.Helper()
	n.eventually("pod "+name+" is "+what, func() (err error) {
		if pod, err = n.agent.Pod(n.ctx(), "default", name); err == nil && !check(pod) {
			err = fmt.Errorf("its status is %+v", pod.Status)
		}
		return err
	})
	return pod
}

func running(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning }

// awaitGone waits until there are no pods.
func (n *node) awaitGone() {
	n.Helper()
	n.eventually("all pods are gone", func() error {
		list, err := n.agent.Pods(n.ctx(), "")
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%s is left", list.Items[0].Name)
		}
		return err
	})
}

// problem waits until the node says what is wrong with a manifest.
func (n *node) problem(file string, causes ...string) {
	n.Helper()
	n.eventually("a problem is told of "+file, func() error {
		problems, err := n.agent.Problems(n.ctx())
		if err != nil {
			return err
		}
		for _, p := range problems {
			text := fmt.Sprintf("%+v", p)
			if !strings.Contains(text, file) {
				continue
			}
			wantError(n, "reading "+file, errors.New(text), causes...)
			return nil
		}
		return fmt.Errorf("among %d problems", len(problems))
	})
}

func TestHostileManifestFiles(t *testing.T) {
	n := start(t)
	n.put("good.yaml", podYAML("good", "sleep 1000", ""))
	n.await("good", "running", running)
	bomb := "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'm'; c++ {
		bomb += fmt.Sprintf("%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n", c, c, c-1, c-1, c-1, c-1, c-1, c-1, c-1, c-1, c-1, c-1)
	}
	for _, test := range []struct{ name, content, cause string }{
		{"huge.yaml", strings.Repeat("# nothing\n", 1<<20), "bytes"},
		{"bomb.yaml", bomb, ""},
		{"loop.yaml", "a: &a\n  b: *a\n", ""},
		{"merge.yaml", "a: &a {<<: *a}\n", ""},
		{"deep.yaml", strings.Repeat("[", 1<<20), ""},
		{"deep.json", strings.Repeat(`{"a":`, 1<<18), ""},
		{"deeplist.yaml", strings.Repeat("{apiVersion: v1, kind: List, items: [", 5000), ""},
		{"documents.yaml", strings.Repeat("a\n---\n", 100000), "document"},
		{"binary.yaml", "\x7fELF\x02\x01\x01\x00\xff\xfe", ""},
		{"nul.json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a\u0000b"}}`, "name"},
		{"name.yaml", strings.Replace(podYAML("x", "true", ""), "name: x", "name: ../../etc", 1), "name"},
		{"long.yaml", podYAML(strings.Repeat("n", 300), "true", ""), "name"},
		{"namespace.yaml", strings.Replace(podYAML("x", "true", ""), "{name: x}", "{name: x, namespace: ../..}", 1), "namespace"},
		{"uid.yaml", strings.Replace(podYAML("x", "true", ""), "{name: x}", "{name: x, uid: ../../../../tmp}", 1), "uid"},
		{"container.yaml", strings.Replace(podYAML("x", "true", ""), "name: main", "name: ../main", 1), "name"},
		{"hostname.yaml", podYAML("x", "true", `  hostname: "a\n127.0.0.1 evil"`), "hostname"},
		{"subpath.yaml", podYAML("x", "true", "    volumeMounts: [{name: v, mountPath: /x, subPath: ../../etc}]\n  volumes: [{name: v, emptyDir: {}}]"), "subPath"},
		{"volume.yaml", podYAML("x", "true", "  volumes: [{name: ../v, emptyDir: {}}]"), "name"},
		{"key.yaml", "{apiVersion: v1, kind: ConfigMap, metadata: {name: m}, data: {../../evil: x}}", "evil"},
		{"slash.yaml", "{apiVersion: v1, kind: Secret, metadata: {name: m}, stringData: {a/b: x}}", "a/b"},
		{"item.yaml", podYAML("x", "true", "  volumes: [{name: v, configMap: {name: m, items: [{key: k, path: ../../evil}]}}]"), "path"},
		{"path.yaml", podYAML("x", "true", "  volumes: [{name: v, hostPath: {path: /tmp/../etc}}]"), "path"},
		{"sysctl.yaml", podYAML("x", "true", `  securityContext: {sysctls: [{name: "kernel/../vm/overcommit_memory", value: "1"}]}`), "sysctl"},
	} {
		n.put(test.name, test.content)
		n.problem(test.name, test.cause)
		if err := os.Remove(filepath.Join(n.manifests, test.name)); err != nil {
			t.Fatal(err)
		}
	}
	n.await("good", "still running", running)
	n.clearManifests()
}

// clearManifests takes all away and waits for the pods to end.
func (n *node) clearManifests() {
	n.Helper()
	files, _ := filepath.Glob(n.manifests + "/*")
	for _, f := range files {
		if err := os.RemoveAll(f); err != nil {
			n.Error(err)
		}
	}
	n.awaitGone()
}

func TestHostileManifestDirectory(t *testing.T) {
	n := start(t)
	in := func(name string) string { return filepath.Join(n.manifests, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Symlink("loop.yaml", in("loop.yaml")))
	must(os.Symlink("b.yaml", in("a.yaml")))
	must(os.Symlink("a.yaml", in("b.yaml")))
	must(os.Symlink("/no/such/file", in("dangling.yaml")))
	must(os.Symlink("/dev/zero", in("zero.yaml")))
	must(os.Symlink("/proc/self/mem", in("mem.yaml")))
	must(syscall.Mkfifo(in("pipe.yaml"), 0o600))
	must(os.Mkdir(in("dir.yaml"), 0o700))
	must(os.Symlink(n.manifests, in("self")))
	n.put("\xff\xfe\n.yaml", "x")
	for i := range 300 {
		must(os.WriteFile(in(fmt.Sprintf("f%d.yaml", i)), []byte("# empty"), 0o644))
	}
	n.put("good.yaml", podYAML("good", "sleep 1000", ""))
	n.await("good", "running", running)
	n.problem("zero.yaml", "regular")
	n.problem("pipe.yaml", "regular")
	n.problem("dir.yaml", "regular")
	n.clearManifests()
}

func TestUnsupportedVolumes(t *testing.T) {
	n := start(t)
	for _, kind := range []string{"nfs: {server: s, path: /p}", "iscsi: {targetPortal: p, iqn: i, lun: 0}", "persistentVolumeClaim: {}",
		"csi: {driver: \"\"}", "awsElasticBlockStore: {volumeID: v}", "gcePersistentDisk: {pdName: p}", "gitRepo: {repository: r}", "glusterfs: {endpoints: e, path: p}",
		"rbd: {monitors: [m], image: i}", "cephfs: {monitors: [m]}", "flexVolume: {driver: d}", "flocker: {datasetName: d}", "fc: {wwids: [w]}",
		"azureFile: {secretName: s, shareName: s}", "azureDisk: {diskName: d, diskURI: u}", "vsphereVolume: {volumePath: p}", "quobyte: {registry: r, volume: v}",
		"photonPersistentDisk: {pdID: p}", "portworxVolume: {volumeID: v}", "scaleIO: {gateway: g, system: s}", "storageos: {}", "cinder: {volumeID: v}",
		"ephemeral: {volumeClaimTemplate: {spec: {}}}"} {
		name, _, _ := strings.Cut(kind, ":")
		_, err := n.agent.Apply(n.ctx(), []byte(podYAML("x", "true", "  volumes: [{name: v, "+kind+"}]")))
		wantError(t, "apply", err, "volumes[0]."+name)
	}
	n.awaitGone()
}

// TestSubPathRace has a container replace the directory that another mounts by
// its name, again and again.
func TestSubPathRace(t *testing.T) {
	n := start(t)
	dir := victim(t)
	n.put("race.yaml", fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: race}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: swaps
    image: localhost/busybox:latest
    imagePullPolicy: Never
    command: [sh, -c, "cd /v; ln -sfn %[1]s evil; while :; do mkdir -p sub; mv -T sub old; ln -s %[1]s sub; rm sub; mv -T old sub; done"]
    volumeMounts: [{name: v, mountPath: /v}]
  - name: mounts
    image: localhost/busybox:latest
    imagePullPolicy: Never
    command: [sh, -c, "test ! -e /sub/canary || echo ESCAPED; touch /sub/was-here"]
    volumeMounts: [{name: v, mountPath: /sub, subPath: sub}]
  - name: straight
    image: localhost/busybox:latest
    imagePullPolicy: Never
    command: [sh, -c, "test ! -e /sub/canary || echo ESCAPED; sleep 0.1"]
    volumeMounts: [{name: v, mountPath: /sub, subPath: evil}]
  volumes: [{name: v, emptyDir: {}}]
`, dir))
	n.await("race", "in trouble or running", func(p *corev1.Pod) bool {
		var restarts int32
		for _, s := range p.Status.ContainerStatuses {
			if s.Name == "mounts" {
				restarts = s.RestartCount
			}
			if s.State.Waiting != nil && strings.Contains(s.State.Waiting.Message, "subPath") {
				restarts++
			}
		}
		return restarts > 0
	})
	for _, name := range []string{"mounts", "straight"} {
		logs, _ := filepath.Glob(n.service.State + "/state/logs/*race*/" + name + "/*")
		for _, file := range logs {
			if b, _ := os.ReadFile(file); strings.Contains(string(b), "ESCAPED") {
				t.Errorf("%s reached the host", name)
			}
		}
	}
	n.clearManifests()
}

func TestHostPortTaken(t *testing.T) {
	n := start(t)
	ports := "    ports: [{containerPort: 80, hostPort: 18099}]"
	n.put("a.yaml", podYAML("first", "sleep 1000", ports))
	n.await("first", "running", running)
	n.put("b.yaml", podYAML("second", "sleep 1000", ports))
	n.eventually("the second pod is refused", func() error {
		events, err := n.agent.PodEvents(n.ctx(), "default", "second")
		if err != nil {
			return err
		}
		why, err := n.agent.Why(n.ctx(), "default", "second")
		text := fmt.Sprintf("%+v %+v", events, why)
		if err == nil && !strings.Contains(text, "18099") {
			err = errors.New(text)
		}
		return err
	})
	if err := os.Remove(filepath.Join(n.manifests, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	n.eventually("the first is gone", func() error {
		_, err := n.agent.Pod(n.ctx(), "default", "first")
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is there: %v", err)
	})
	n.clearManifests()
}
