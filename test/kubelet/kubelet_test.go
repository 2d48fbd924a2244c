// Package kubelet runs a stock kubelet, with static pods and no API server, on
// `podstead cri`: neither knows the other but by the CRI. Building the kubelet
// takes minutes, so the test runs only if $PODSTEAD_TEST_KUBELET names one; see
// "make test-kubelet".
package kubelet

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cgroup"
	"podstead/cri/remote"
	"podstead/image/imagetest"
	"podstead/test/host"
	"podstead/test/leak"
	"podstead/test/node"
	"podstead/test/peer"
	"podstead/test/programs"
)

const (
	kubeletVariable  = "PODSTEAD_TEST_KUBELET"
	podsteadVariable = "PODSTEAD_TEST_PODSTEAD"
	bound            = 2 * time.Minute
)

func TestMain(m *testing.M) {
	if os.Getenv(kubeletVariable) != "" && os.Getenv(podsteadVariable) == "" {
		path, err := programs.Podstead()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Setenv(podsteadVariable, path)
	}
	host.Main(m)
}

const config = `
kind: KubeletConfiguration
apiVersion: kubelet.config.k8s.io/v1beta1
staticPodPath: %[1]s/pods
podLogsDir: %[1]s/logs
containerRuntimeEndpoint: %[2]s
cgroupRoot: %[3]s
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
readOnlyPort: 10255
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
evictionHard: {memory.available: 1Mi, nodefs.available: 0%%, nodefs.inodesFree: 0%%, imagefs.available: 0%%}
featureGates: {PodAndContainerStatsFromCRI: true}
`

const pod = `
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: init, image: "%[1]s", command: [sh, -c, "echo hello >/data/index.html"], volumeMounts: [{name: data, mountPath: /data}]}
  containers:
  - name: httpd
    image: "%[1]s"
    command: [sh, -c, "echo serving; httpd -p 8080 -h /data; while ! test -e /tmp/end; do sleep 0.1; done; exit 3"]
    ports: [{containerPort: 8080, hostPort: 18080}]
    readinessProbe: {httpGet: {path: /index.html, port: 8080}, periodSeconds: 1}
    livenessProbe: {exec: {command: [test, -e, /data/index.html]}, periodSeconds: 1}
    resources: {limits: {memory: 32Mi, cpu: 500m}}
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
`

// TestStockKubelet runs it on our engine.
func TestStockKubelet(t *testing.T) {
	require(t)
	n := node.Run(t, os.Getenv(podsteadVariable), "cri")
	// The supervisor starts the engine again.
	live(t, n, "podstead", func() { killEngine(t, n) })
}

// TestStockKubeletOnDocker runs it on a Docker Engine.
func TestStockKubeletOnDocker(t *testing.T) {
	require(t)
	d := peer.RunDocker(t, nil)
	n := node.Run(t, os.Getenv(podsteadVariable), "cri", "--backend", "docker", "--docker-endpoint", d.Endpoint)
	live(t, n, "docker", func() {
		n.Kill()
		if err := n.Again(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// require skips a test that cannot be run here, and makes one fail that leaves
// something.
func require(t *testing.T) {
	t.Helper()
	if os.Getenv(kubeletVariable) == "" {
		t.Skip("$" + kubeletVariable + " names no kubelet")
	}
	host.Require(t)
	leak.Check(t, leak.Scope{Cgroup: host.Cgroup()})
}

// live takes a pod through its life on a runtime of that name, which is killed
// meanwhile.
func live(t *testing.T, n *node.Node, name string, kill func()) {
	t.Helper()
	dir := t.TempDir()
	image := imagetest.Registry(t, map[string]imagetest.Image{"busybox:1": imagetest.Busybox(t)}) + "/busybox:1"
	startKubelet(t, os.Getenv(kubeletVariable), dir, n.Endpoint())
	manifest := filepath.Join(dir, "pods", "web.yaml")
	if err := os.WriteFile(manifest, fmt.Appendf(nil, pod, image), 0o644); err != nil {
		t.Fatal(err)
	}

	var web *corev1.Pod
	eventually(t, "the pod is ready", func() (err error) {
		web, err = podOf(t)
		if err == nil && !ready(web) {
			err = fmt.Errorf("it is %+v", web.Status)
		}
		return err
	})
	if body := get(t, "http://127.0.0.1:18080/index.html"); body != "hello\n" {
		t.Errorf("the host port answers %q", body)
	}
	if log := get(t, "http://127.0.0.1:10255/pods"); !strings.Contains(log, name+"://") {
		t.Errorf("container IDs are not %s's", name)
	}
	eventually(t, "the log is shown", func() error {
		if log := kubectl(t, http.MethodGet, "/containerLogs/default/web-testnode/httpd"); log != "serving\n" {
			return fmt.Errorf("it is %q", log)
		}
		return nil
	})
	if out := kubectl(t, http.MethodPost, "/run/default/web-testnode/httpd?cmd=cat%20/data/index.html"); out != "hello\n" {
		t.Errorf("a command in the container says %q", out)
	}
	eventually(t, "the pod is in the summary of stats", func() error {
		var summary struct {
			Pods []struct {
				PodRef struct{ Name string }
				Memory struct{ WorkingSetBytes uint64 }
			}
		}
		if err := json.Unmarshal([]byte(kubectl(t, http.MethodGet, "/stats/summary")), &summary); err != nil {
			return err
		}
		if len(summary.Pods) != 1 || summary.Pods[0].PodRef.Name != "web-testnode" || summary.Pods[0].Memory.WorkingSetBytes == 0 {
			return fmt.Errorf("it has %+v", summary.Pods)
		}
		return nil
	})

	// The runtime dies; the pod does not notice.
	kill()
	time.Sleep(3 * time.Second) // of probes
	if after, err := podOf(t); err != nil || !ready(after) || after.Status.ContainerStatuses[0].ContainerID != web.Status.ContainerStatuses[0].ContainerID ||
		after.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("after the engine was killed: %+v, %v", after, err)
	}
	// The container dies; the kubelet starts it again.
	kubectl(t, http.MethodPost, "/run/default/web-testnode/httpd?cmd=touch%20/tmp/end")
	eventually(t, "the container is restarted", func() error {
		after, err := podOf(t)
		if err == nil && (!ready(after) || after.Status.ContainerStatuses[0].RestartCount != 1) {
			err = fmt.Errorf("its status is %+v", after.Status.ContainerStatuses[0])
		}
		return err
	})
	if err := os.Remove(manifest); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod is gone", func() error {
		list, err := pods(t)
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("there is %s", list.Items[0].Name)
		}
		return err
	})
	r, err := remote.New(n.Endpoint())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// It forgets the pod first and stops it then; what is dead it keeps for a while.
	var list *runtimeapi.ListPodSandboxResponse
	eventually(t, "the pod is stopped", func() (err error) {
		list, err = r.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		for _, s := range list.GetItems() {
			if s.State == runtimeapi.PodSandboxState_SANDBOX_READY {
				err = fmt.Errorf("its sandbox %s is ready", s.Id)
			}
		}
		return err
	})
	for _, s := range list.Items {
		if _, err := r.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			t.Error(err)
		}
	}
}

// startKubelet runs a kubelet until the test ends.
func startKubelet(t *testing.T, program, dir, endpoint string) {
	t.Helper()
	makeCgroups(t)
	file := filepath.Join(dir, "kubelet.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, config, dir, endpoint, host.Cgroup()), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "pods"), 0o755); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "kubelet.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--config", file, "--root-dir", filepath.Join(dir, "kubelet"), "--hostname-override", "testnode")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(bound, func() { cmd.Process.Kill() })
		cmd.Wait()
		kill.Stop()
		log.Close()
		// It makes its directory a mount of its own, to share mounts from there.
		if err := syscall.Unmount(filepath.Join(dir, "kubelet"), syscall.MNT_DETACH); err != nil && err != syscall.EINVAL {
			t.Error(err)
		}
		if t.Failed() {
			data, _ := os.ReadFile(log.Name())
			t.Logf("the kubelet's log ends with:\n%s", data[max(0, len(data)-8000):])
		}
	})
}

// makeCgroups makes the kubelet's root in every hierarchy, those that have no
// controllers included, and removes it with all that the kubelet leaves in it.
func makeCgroups(t *testing.T) {
	t.Helper()
	hierarchy, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	if err := hierarchy.Group(host.Cgroup()).Create(); err != nil {
		t.Fatal(err)
	}
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	for _, procs := range append(roots, "/sys/fs/cgroup/cgroup.procs") {
		root := filepath.Join(filepath.Dir(procs), host.Cgroup())
		if _, err := os.Stat(procs); err != nil {
			continue
		}
		if err := os.Mkdir(root, 0o755); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			var dirs []string
			filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			slices.Reverse(dirs)
			for _, dir := range dirs {
				if err := os.Remove(dir); err != nil && !t.Failed() {
					t.Error(err)
				}
			}
		})
	}
}

func killEngine(t *testing.T, n *node.Node) {
	t.Helper()
	killed := false
	for _, pid := range n.Pids() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		words := strings.Split(string(line), "\x00")
		if len(words) > 1 && filepath.Base(words[0]) == "podstead" && words[1] == "cri" {
			killed = syscall.Kill(pid, syscall.SIGKILL) == nil
		}
	}
	if !killed {
		t.Error("there is no engine to be killed")
	}
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(bound)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, bound, err)
		}
		time.Sleep(100 * time.Millisecond) // between two looks; nothing relies on it
	}
}

func pods(t *testing.T) (list corev1.PodList, err error) {
	t.Helper()
	return list, json.Unmarshal([]byte(get(t, "http://127.0.0.1:10255/pods")), &list)
}

func podOf(t *testing.T) (*corev1.Pod, error) {
	t.Helper()
	list, err := pods(t)
	if err != nil {
		return nil, err
	}
	if len(list.Items) != 1 {
		return nil, fmt.Errorf("%d pods", len(list.Items))
	}
	return &list.Items[0], nil
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func get(t *testing.T, url string) string {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second}
	return answer(client.Get(url))
}

// kubectl asks the kubelet's API, whose certificate nobody has signed.
func kubectl(t *testing.T, method, path string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://127.0.0.1:10250"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	return answer((&http.Client{Timeout: 20 * time.Second, Transport: transport}).Do(req))
}

// answer is the body of an answer, or the error.
func answer(resp *http.Response, err error) string {
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return string(body)
}
