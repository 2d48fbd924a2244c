package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/image/imagetest"
	"podstead/test/host"
	"podstead/test/leak"
	"podstead/test/programs"
)

// podsteadVariable hands the path of the program to the tests inside the host.
const podsteadVariable = "PODSTEAD_TEST_PROGRAM"

// busybox is the name of the image that most pods here run.
const busybox = "localhost/busybox:latest"

// bound is how long anything may take before it counts as hanging.
const bound = 5 * time.Minute

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(podsteadVariable) == "" && os.Geteuid() == 0 {
		path, err := programs.Podstead()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Setenv(podsteadVariable, path)
	}
	host.Main(m)
}

// node is a node under test, or the directories for one.
type node struct {
	*testing.T
	state, run, manifests string
	front                 *exec.Cmd
	exited                chan struct{}
	log                   *os.File
}

// newNode makes the directories of a node; at the end of the test nothing of
// it may be left.
func newNode(t *testing.T) *node {
	t.Helper()
	host.Require(t)
	// Sockets have short paths; t.TempDir may not.
	run, err := os.MkdirTemp("/run", "e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	n := &node{T: t, state: t.TempDir(), run: run, manifests: t.TempDir()}
	leak.Check(t, leak.Scope{Dirs: []string{"/run/netns"}})
	checkCgroups(t, run)
	n.log, err = os.Create(filepath.Join(n.state, "node.log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.log.Close()
		if t.Failed() {
			data, _ := os.ReadFile(n.log.Name())
			t.Logf("node log:\n%s", tail(data, 6000))
		}
	})
	return n
}

// checkCgroups demands that an instance takes its cgroups along. They are named
// after the run directory (cmd/podstead, options.instance).
func checkCgroups(t *testing.T, run string) {
	sum := sha256.Sum256([]byte(run))
	t.Cleanup(func() {
		name := "/ps" + hex.EncodeToString(sum[:4])
		left, _ := filepath.Glob("/sys/fs/cgroup" + name)     // v2
		others, _ := filepath.Glob("/sys/fs/cgroup/*" + name) // each hierarchy of v1
		if left = append(left, others...); len(left) > 0 && !t.Failed() {
			t.Errorf("leaked: cgroups %v", left)
		}
	})
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

// start starts `podstead node` and waits until it answers.
func (n *node) start(args ...string) {
	n.Helper()
	args = append([]string{"node", "--state", n.state, "--run", n.run, "--manifests", n.manifests, "--node-name", "testnode"}, args...)
	n.front = exec.Command(os.Getenv(podsteadVariable), args...)
	n.front.Stdout, n.front.Stderr = n.log, n.log
	if err := n.front.Start(); err != nil {
		n.Fatal(err)
	}
	exited := make(chan struct{})
	n.exited = exited
	front := n.front
	go func() {
		front.Wait()
		close(exited)
	}()
	n.Cleanup(func() { n.takeDown() })
	n.eventually("the node answers", func() error {
		_, err := n.try("get", "pods")
		return err
	})
}

// takeDown removes all manifests, waits for their pods to go and ends the node.
func (n *node) takeDown() {
	files, _ := filepath.Glob(filepath.Join(n.manifests, "*"))
	for _, f := range files {
		os.RemoveAll(f)
	}
	pods, err := n.pods()
	if err != nil {
		return // it has been stopped
	}
	for _, p := range pods {
		n.try("delete", "pod", "-n", p.Namespace, p.Name, "--grace-period", "0", "--wait=false")
	}
	n.eventually("all pods are gone", func() error {
		pods, err := n.pods()
		if err == nil && len(pods) > 0 {
			err = fmt.Errorf("%s is left", pods[0].Name)
		}
		return err
	})
	n.stop()
}

// stop ends the node as a service manager does; pods go on.
func (n *node) stop() {
	n.Helper()
	if err := n.front.Process.Signal(syscall.SIGTERM); err != nil {
		n.Fatal(err)
	}
	select {
	case <-n.exited:
	case <-time.After(bound):
		n.Fatal("the node does not end")
	}
	if code := n.front.ProcessState.ExitCode(); code != 0 {
		n.Errorf("the node ended with %d", code)
	}
}

// command prepares a client command.
func (n *node) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Getenv(podsteadVariable), append([]string{"--state", n.state, "--run", n.run}, args...)...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// try runs a client command and returns its standard output; an error holds
// what it said on standard error.
func (n *node) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := n.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("podstead %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), err
}

// do is try for what must succeed.
func (n *node) do(args ...string) string {
	n.Helper()
	out, err := n.try(args...)
	if err != nil {
		n.Fatal(err)
	}
	return out
}

// eventually waits for check to be content.
func (n *node) eventually(what string, check func() error) {
	n.Helper()
	deadline := time.Now().Add(bound)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			n.Fatalf("%s: not within %s: %v", what, bound, err)
		}
		time.Sleep(20 * time.Millisecond) // between two looks; nothing relies on it
	}
}

// loadBusybox gives the node the image.
func (n *node) loadBusybox() {
	n.Helper()
	n.do("image", "load", imagetest.Archive(n.T, imagetest.Busybox(n.T), busybox))
}

// write puts a manifest into the directory, as an editor does.
func (n *node) write(name, content string) {
	n.Helper()
	tmp := filepath.Join(n.state, name)
	if err := os.WriteFile(tmp, []byte(content), 0o644); err != nil {
		n.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(n.manifests, name)); err != nil {
		n.Fatal(err)
	}
}

func (n *node) pods() ([]corev1.Pod, error) {
	out, err := n.try("get", "pods", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list corev1.PodList
	return list.Items, json.Unmarshal([]byte(out), &list)
}

// pod returns a pod, by name.
func (n *node) pod(name string) (*corev1.Pod, error) {
	pods, err := n.pods()
	for i := range pods {
		if pods[i].Name == name {
			return &pods[i], nil
		}
	}
	return nil, errors.Join(err, fmt.Errorf("there is no pod %s", name))
}

// await waits until a pod is as check wants it.
func (n *node) await(name, what string, check func(*corev1.Pod) bool) *corev1.Pod {
	n.Helper()
	var pod *corev1.Pod
	n.eventually(name+" is "+what, func() (err error) {
		if pod, err = n.pod(name); err == nil && !check(pod) {
			status, _ := json.Marshal(pod.Status)
			err = fmt.Errorf("its status is %s", status)
		}
		return err
	})
	return pod
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func phase(want corev1.PodPhase) func(*corev1.Pod) bool {
	return func(p *corev1.Pod) bool { return p.Status.Phase == want }
}

// awaitGone waits until there is no such pod any more.
func (n *node) awaitGone(name string) {
	n.Helper()
	n.eventually(name+" is gone", func() error {
		pods, err := n.pods()
		for _, p := range pods {
			if p.Name == name {
				return fmt.Errorf("it is %s", p.Status.Phase)
			}
		}
		return err
	})
}

// containerID of the pod's container, without the runtime's name.
func containerID(p *corev1.Pod, container string) string {
	for _, s := range p.Status.ContainerStatuses {
		if s.Name == container {
			_, id, _ := strings.Cut(s.ContainerID, "://")
			return id
		}
	}
	return ""
}

// get fetches a URL.
func get(url string) (string, error) {
	c := http.Client{Timeout: bound, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// children lists the process IDs whose parent is pid.
func children(t *testing.T, pid int) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, e := range entries {
		var child, parent int
		if _, err := fmt.Sscan(e.Name(), &child); err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		_, after, _ := strings.Cut(string(stat), ") ")
		var state string
		if fmt.Sscan(after, &state, &parent); parent == pid {
			out = append(out, child)
		}
	}
	return out
}

// process finds the process of this node whose command line contains all words.
func (n *node) process(words ...string) int {
	n.Helper()
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range paths {
		b, err := os.ReadFile(p)
		line := strings.ReplaceAll(string(b), "\x00", " ")
		if err != nil || !strings.Contains(line, n.run) {
			continue
		}
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		var pid int
		if fmt.Sscanf(p, "/proc/%d/cmdline", &pid); all {
			return pid
		}
	}
	n.Fatalf("no process of %s has %q in its command line", n.run, words)
	return 0
}

// engine and supervisor are the processes of a running node.
func (n *node) supervisor() int { n.Helper(); return n.process("podstead-supervisor", "daemon") }

func (n *node) engine() int {
	n.Helper()
	var pid int
	n.eventually("an engine runs", func() error {
		for _, child := range children(n.T, n.supervisor()) {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child))
			if strings.Contains(string(b), "\x00node\x00") {
				pid = child
				return nil
			}
		}
		return errors.New("the supervisor has no such child")
	})
	return pid
}
