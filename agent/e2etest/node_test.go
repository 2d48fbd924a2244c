package e2etest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/remotecommand"

	"podstead/agent"
	"podstead/agent/client"
	"podstead/cgroup"
	"podstead/cri/remote"
	"podstead/test/host"
	runtimenode "podstead/test/node"
	"podstead/test/peer"
	"podstead/test/programs"
)

// podsteadVariable hands the path of the program to the tests inside the host.
const podsteadVariable = "PODSTEAD_TEST_PROGRAM"

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

const (
	pauseImage   = "test.local/pause:1"
	busyboxImage = "test.local/busybox:1"
	patience     = 5 * time.Minute
)

// node is an agent on a runtime behind a socket.
type node struct {
	*testing.T
	dir       string
	manifests string
	url       agent.ManifestURL
	runtime   *remote.Runtime
	left      func() error // tells what the runtime has left of pods
	client    *client.Client
	policy    *agent.Policy
	providers []*agent.CredentialProvider
	kubelet   *agent.KubeletAPI
	rootDir   string
	tracing   trace.TracerProvider
	stop      func()
}

// onEach runs a test with each runtime that there is.
func onEach(t *testing.T, test func(n *node)) {
	host.Require(t)
	t.Run("containerd", func(t *testing.T) { test(onContainerd(t)) })
	t.Run("podstead", func(t *testing.T) { test(onPodstead(t)) })
}

// ours tells whether the runtime is podstead. What does not depend on the runtime
// is shown once, for the time that it takes.
func (n *node) ours() bool { return strings.HasSuffix(n.Name(), "/podstead") }

func newNode(t *testing.T) *node {
	n := &node{T: t, dir: t.TempDir(), left: func() error { return nil }}
	n.manifests = filepath.Join(n.dir, "manifests")
	return n
}

// onContainerd starts an agent on containerd.
func onContainerd(t *testing.T) *node {
	n := newNode(t)
	c, err := peer.StartContainerd(t.Context(), filepath.Join(n.dir, "containerd"), pauseImage)
	if errors.Is(err, peer.ErrNotInstalled) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	n.left = func() error {
		if shims := c.Shims(); len(shims) > 0 {
			return fmt.Errorf("shims still run: %v", shims)
		}
		return nil
	}
	if err := c.Import(t.Context(), n.archive()); err != nil {
		t.Fatal(err)
	}
	n.connect(c.Endpoint)
	return n
}

// onPodstead starts an agent on our own engine, in another process as any
// runtime: the same socket, the same messages.
func onPodstead(t *testing.T) *node {
	n := newNode(t)
	p, err := runtimenode.Start(t.Context(), os.Getenv(podsteadVariable), filepath.Join(n.dir, "podstead"), "node")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(p.LogTail())
		}
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
	archive, err := os.Open(n.archive())
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	other := client.New(filepath.Join(p.Run, "agent.sock"))
	defer other.Close()
	if _, err := other.LoadImages(t.Context(), archive); err != nil {
		t.Fatal(err)
	}
	n.connect(p.Endpoint())
	return n
}

// archive writes the images that the pods run.
func (n *node) archive() string {
	n.Helper()
	pause, err := peer.Pause()
	if err != nil {
		n.Fatal(err)
	}
	busybox, err := peer.Busybox()
	if errors.Is(err, peer.ErrNotInstalled) {
		n.Skip(err)
	}
	if err != nil {
		n.Fatal(err)
	}
	path := filepath.Join(n.dir, "images.tar")
	if err := peer.Archive(path, map[string]v1.Image{pauseImage: pause, busyboxImage: busybox}); err != nil {
		n.Fatal(err)
	}
	return path
}

func (n *node) connect(endpoint string) {
	n.Helper()
	var err error
	if n.runtime, err = remote.New(endpoint); err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { n.runtime.Close() })
	n.start()
}

// start starts the agent; stop ends it, pods go on.
func (n *node) start() {
	n.Helper()
	cgroups, err := cgroup.Detect()
	if err != nil {
		n.Fatal(err)
	}
	socket := filepath.Join(n.dir, "agent.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		n.Fatal(err)
	}
	a, err := agent.New(agent.Config{
		Runtime: n.runtime, ManifestDir: n.manifests, ManifestURL: n.url, StateDir: filepath.Join(n.dir, "state"), RunDir: filepath.Join(n.dir, "run"), PodLogsDir: filepath.Join(n.dir, "logs"),
		NodeName: "node1", Policy: n.policy, CredentialProviders: n.providers, Kubelet: n.kubelet, Tracing: n.tracing, RootDir: n.rootDir, FileSystemUsage: []string{os.Getenv(podsteadVariable), "file-system-usage"}, HostPathCheck: []string{os.Getenv(podsteadVariable), "host-path-check"}, Cgroups: cgroups, CgroupRoot: host.Cgroup(), Listener: listener,
		Log: slog.New(slog.NewTextHandler(n.Output(), nil)),
	})
	if err != nil {
		n.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	n.client = client.New(socket)
	stopped := false
	n.stop = func() {
		if stopped {
			return
		}
		stopped = true
		n.client.Close()
		cancel()
		if err := <-done; err != nil {
			n.Errorf("agent: %v", err)
		}
		tree := cgroups.Group(path.Join(host.Cgroup(), "kubepods"))
		if pods, err := os.ReadDir(filepath.Join(n.dir, "state", "pods")); err == nil && len(pods) == 0 && tree.Exists() {
			n.Errorf("%s is left, without pods and agent", tree.Path())
		}
	}
	n.Cleanup(n.stop)
}

func (n *node) apply(manifest string) {
	n.Helper()
	if _, err := n.client.Apply(n.Context(), []byte(manifest)); err != nil {
		n.Fatal(err)
	}
}

// until waits for a pod to satisfy f, by watching and not by asking.
func (n *node) until(name, what string, f func(*corev1.Pod) bool) *corev1.Pod {
	n.Helper()
	ctx, cancel := context.WithTimeout(n.Context(), patience)
	defer cancel()
	var last *corev1.Pod
	found := errors.New("found")
	err := n.client.Watch(ctx, "default", name, func(c client.Change) error {
		if c.Type == client.Gone {
			c.Pod = nil
		} else if c.Pod == nil && (c.Type != client.Synced || last != nil) {
			return nil
		}
		last = c.Pod
		if f(c.Pod) {
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		n.Fatalf("pod %s is not %s: %v\n%s\n%+v", name, what, err, n.events(name), last)
	}
	return last
}

func (n *node) events(name string) string {
	list, err := n.client.PodEvents(context.WithoutCancel(n.Context()), "default", name)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, e := range list.Items {
		b.WriteString(e.Type + " " + e.Reason + " " + e.Message + "\n")
	}
	return b.String()
}

func ready(p *corev1.Pod) bool {
	if p == nil {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func gone(p *corev1.Pod) bool { return p == nil }

func (n *node) log(name string, o client.LogOptions) string {
	n.Helper()
	r, err := n.client.Logs(n.Context(), "default", name, o)
	if err != nil {
		n.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		n.Fatal(err)
	}
	return string(data)
}

// logged waits until a container's log has all parts.
func (n *node) logged(name, container string, parts ...string) {
	n.Helper()
	for deadline := time.Now().Add(patience); ; {
		text := n.log(name, client.LogOptions{Container: container})
		missing := slices.DeleteFunc(slices.Clone(parts), func(p string) bool { return strings.Contains(text, p) })
		if len(missing) == 0 {
			return
		}
		if time.Now().After(deadline) {
			n.Fatalf("the log has no %q:\n%s", missing, text)
		}
	}
}

// line waits for the first line of a container's log.
func (n *node) line(name, container string) string {
	n.Helper()
	ctx, cancel := context.WithTimeout(n.Context(), patience)
	defer cancel()
	r, err := n.client.Logs(ctx, "default", name, client.LogOptions{Container: container, Follow: true})
	if err != nil {
		n.Fatal(err)
	}
	defer r.Close()
	text, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		n.Error(err)
	}
	return text
}

func (n *node) exec(name, container string, command ...string) string {
	n.Helper()
	var out, errOut bytes.Buffer
	err := n.client.Exec(n.Context(), "default", name, client.ExecOptions{Container: container, Command: command,
		Streams: remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut}})
	if err != nil {
		n.Errorf("exec %q: %v, %s", command, err, errOut.String())
	}
	return out.String()
}

// clean checks that nothing of any pod is left.
func (n *node) clean() {
	n.Helper()
	for _, dir := range []string{"state/pods", "logs"} {
		if left, _ := os.ReadDir(filepath.Join(n.dir, dir)); len(left) > 0 {
			n.Errorf("left in %s: %v", dir, left)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		n.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, n.dir+"/state") {
			n.Errorf("left mounted: %s", line)
		}
	}
	// A shim ends by itself when its pod has gone.
	err = n.left()
	for deadline := time.Now().Add(patience); err != nil && time.Now().Before(deadline); err = n.left() {
		time.Sleep(10 * time.Millisecond) // between two looks
	}
	if err != nil {
		n.Error(err)
	}
}
