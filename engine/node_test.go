package engine

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cgroup"
	"podstead/engine/config"
	"podstead/image"
	"podstead/image/imagetest"
	"podstead/network"
	"podstead/supervisor"
	testhost "podstead/test/host"
	"podstead/test/leak"
)

func TestMain(m *testing.M) {
	if os.Getenv("NRI_PLUGIN_NAME") != "" {
		runInstalledPlugin()
		return
	}
	if dir := os.Getenv(hideVariable); dir != "" {
		hideInProject(dir)
		return
	}
	testhost.Main(m)
}

// patience bounds every wait; it costs nothing when all is well.
const patience = 5 * time.Minute

// supervisorBinary builds the real supervisor, once, unless there is one: in a
// VM without a Go toolchain.
var supervisorBinary = sync.OnceValues(func() (string, error) {
	if bin := os.Getenv(supervisor.CommandEnv); bin != "" {
		return bin, nil
	}
	dir, err := os.MkdirTemp("/run", "podstead-supervisor-*")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "podstead-supervisor")
	out, err := exec.Command("go", "build", "-o", bin, "podstead/cmd/podstead-supervisor").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the supervisor: %w\n%s", err, out)
	}
	return bin, nil
})

// node is an engine on directories of its own with a real supervisor.
type node struct {
	*Engine
	t      testing.TB
	cfg    Config
	client *supervisor.Client
	images *image.Store
	net    *network.Network
	logs   string // directory of pods' logs
	cdi    string // directory of files that describe devices
	n      atomic.Int64

	supervisorDir, networkState, networkRun string
}

const testImage = "test.local/busybox:1"

// newNode starts a node. Everything of it is gone when the test ends, and that
// is checked. The first of handlers, if there is one, is the default.
func newNode(t testing.TB, handlers ...config.Handler) *node {
	t.Helper()
	return newNodeWithSlots(t, 4, handlers...)
}

// newNodeWithSlots starts a node that keeps so many networks ready, which come and
// go in the background.
func newNodeWithSlots(t testing.TB, slots int, handlers ...config.Handler) *node {
	t.Helper()
	testhost.Require(t)
	bin, err := supervisorBinary()
	if err != nil {
		t.Fatal(err)
	}
	run, err := os.MkdirTemp("/run", "podstead-*")
	if err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	n := &node{t: t, logs: t.TempDir(), cdi: t.TempDir()}
	leak.Check(t, leak.Scope{Cgroup: testhost.Cgroup()})
	t.Cleanup(func() { os.RemoveAll(run) })
	n.startSupervisor(bin, filepath.Join(run, "supervisor"))
	h, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	settings := settingsWith(handlers)
	settings.Logs = config.Logs{MaxBytes: config.Bytes{N: 1 << 20}, MaxFiles: 2}
	settings.CDI.Dirs = []string{n.cdi}
	n.cfg = Config{
		StateDir: filepath.Join(state, "engine"), RunDir: filepath.Join(run, "engine"),
		ImageDir: filepath.Join(state, "images"), Cgroups: h, Supervisor: n.client,
		CgroupParent: testhost.Cgroup(), Settings: settings, Version: "1.2.3",
		Log: slog.New(slog.NewTextHandler(&testLog{t: t}, &slog.HandlerOptions{Level: level(t)})),
	}
	n.images, err = image.Open(image.Config{Dir: n.cfg.ImageDir, Log: n.cfg.Log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.images.Close() })
	n.load(imagetest.Busybox(t), testImage)
	n.networkState, n.networkRun = filepath.Join(state, "network"), filepath.Join(run, "network")
	n.net, err = network.New(network.Config{
		Name: "ptest0", StateDir: n.networkState, RunDir: n.networkRun,
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("fd00:88::/64")}, Slots: slots, Log: n.cfg.Log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.net.Destroy(context.Background()); err != nil {
			t.Errorf("destroy network: %v", err)
		}
		n.net.Close()
	})
	n.cfg.Images, n.cfg.Network = n.images, n.net
	n.start()
	t.Cleanup(n.end)
	return n
}

func settingsWith(handlers []config.Handler) config.Config {
	c := config.Default()
	if c.Handlers = handlers; len(handlers) > 0 {
		c.DefaultHandler = handlers[0].Name
	}
	return c
}

// onHandlers runs a test with the built-in handler and with runc.
func onHandlers(t *testing.T, test func(*testing.T, ...config.Handler)) {
	t.Run("builtin", func(t *testing.T) { test(t) })
	t.Run("runc", func(t *testing.T) { test(t, runc(t)) })
}

// runc is the handler of Debian's.
func runc(t *testing.T) config.Handler {
	t.Helper()
	path, err := exec.LookPath("runc")
	if err != nil {
		t.Skip("runc is not installed")
	}
	return config.Handler{Name: "runc", Path: path}
}

// level keeps a benchmark's log to what is wrong.
func level(t testing.TB) slog.Level {
	if _, ok := t.(*testing.B); ok {
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// testLog sends the engine's log to the test's.
type testLog struct {
	t  testing.TB
	mu sync.Mutex
}

func (l *testLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.t.Log(string(bytes.TrimSpace(b)))
	return len(b), nil
}

// startSupervisor starts one as cmd/podstead does: it is started anew if it
// dies, and ended with the test.
func (n *node) startSupervisor(bin, dir string) {
	n.t.Helper()
	n.t.Setenv(supervisor.CommandEnv, bin)
	c, err := supervisor.Ensure(context.Background(), dir)
	if err != nil {
		n.t.Fatal(err)
	}
	n.client = c
	n.t.Cleanup(func() {
		c.Close()
		n.killSupervisor(dir)
	})
	n.supervisorDir = dir
}

// killSupervisor kills the supervisor of a directory, and what it has forked
// that is no container yet.
func (n *node) killSupervisor(dir string) {
	n.t.Helper()
	killed := false
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range lines {
		b, _ := os.ReadFile(file)
		if !strings.Contains(string(b), "\x00--run\x00"+dir+"\x00") || !strings.Contains(string(b), "podstead-supervisor") {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if p, err := os.FindProcess(pid); err == nil {
			killed = p.Kill() == nil || killed
			p.Release()
		}
	}
	if !killed {
		n.t.Errorf("no supervisor of %s runs", dir)
	}
}

func (n *node) load(img imagetest.Image, name string) {
	n.t.Helper()
	_, err := n.images.Load(context.Background(), bytes.NewReader(imagetest.ArchiveBytes(n.t, img, name)))
	if err != nil {
		n.t.Fatalf("load image: %v", err)
	}
}

// start makes the engine; after Close it stands for a restart.
func (n *node) start() {
	n.t.Helper()
	e, err := New(context.Background(), n.cfg)
	if err != nil {
		n.t.Fatalf("New: %v", err)
	}
	n.Engine = e
}

func (n *node) restart() {
	n.t.Helper()
	if err := n.Engine.Close(); err != nil {
		n.t.Fatalf("Close: %v", err)
	}
	n.start()
}

// end removes all pods and closes the engine.
func (n *node) end() {
	for _, s := range n.allSandboxes() {
		if _, err := n.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.id}); err != nil {
			n.t.Errorf("remove pod sandbox: %v", err)
		}
	}
	if err := n.Engine.Close(); err != nil {
		n.t.Errorf("Close: %v", err)
	}
	for _, dir := range []string{"sandboxes", "containers"} {
		if left, _ := os.ReadDir(filepath.Join(n.cfg.StateDir, dir)); len(left) > 0 && !n.t.Failed() {
			n.t.Errorf("left in %s: %v", dir, left)
		}
	}
	if left := n.images.Holders(); len(left) > 0 {
		n.t.Errorf("image holds are left: %v", left)
	}
	if left, err := n.client.List(context.Background()); err != nil || len(left) > 0 {
		n.t.Errorf("processes are left at the supervisor: %v, %v", left, err)
	}
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-deadline:
			t.Fatalf("not within %v: %s", patience, what)
		case <-tick.C:
		}
	}
}

// pod is a configuration of a new pod.
func (n *node) pod(change ...func(*runtimeapi.PodSandboxConfig)) *runtimeapi.PodSandboxConfig {
	uid := fmt.Sprint(n.n.Add(1))
	c := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "pod-" + uid, Namespace: "test", Uid: uid},
		Hostname:     "pod-" + uid,
		LogDirectory: filepath.Join(n.logs, uid),
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func (n *node) run(c *runtimeapi.PodSandboxConfig) string {
	n.t.Helper()
	resp, err := n.RunPodSandbox(context.Background(), &runtimeapi.RunPodSandboxRequest{Config: c})
	if err != nil {
		n.t.Fatalf("RunPodSandbox: %v", err)
	}
	return resp.PodSandboxId
}

// script is a container that runs a shell script.
func (n *node) script(script string, change ...func(*runtimeapi.ContainerConfig)) *runtimeapi.ContainerConfig {
	name := fmt.Sprint("c", n.n.Add(1))
	c := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: testImage},
		Command:  []string{"/bin/sh", "-c", script},
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

// forever keeps a container running and lets it end at once when asked to,
// which it is ready for when it has said so in its log.
const forever = `trap 'exit 0' TERM; echo ready; while :; do sleep 1000 & wait $!; done`

// ready waits until a container that runs forever can be asked to end.
func (n *node) ready(id string) string {
	n.t.Helper()
	path := n.status(id).LogPath
	eventually(n.t, "container is ready", func() bool {
		b, _ := os.ReadFile(path)
		return bytes.Contains(b, []byte(" F ready\n"))
	})
	return id
}

func (n *node) create(sandbox string, c *runtimeapi.ContainerConfig) string {
	n.t.Helper()
	resp, err := n.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: c})
	if err != nil {
		n.t.Fatalf("CreateContainer: %v", err)
	}
	return resp.ContainerId
}

func (n *node) begin(sandbox string, c *runtimeapi.ContainerConfig) string {
	n.t.Helper()
	id := n.create(sandbox, c)
	if _, err := n.StartContainer(context.Background(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		n.t.Fatalf("StartContainer: %v", err)
	}
	return id
}

func (n *node) status(id string) *runtimeapi.ContainerStatus {
	n.t.Helper()
	resp, err := n.ContainerStatus(context.Background(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		n.t.Fatalf("ContainerStatus: %v", err)
	}
	return resp.Status
}

func (n *node) exited(id string) *runtimeapi.ContainerStatus {
	n.t.Helper()
	var st *runtimeapi.ContainerStatus
	eventually(n.t, "container has exited", func() bool {
		st = n.status(id)
		return st.State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return st
}

func (n *node) sh(container, script string) *runtimeapi.ExecSyncResponse {
	n.t.Helper()
	resp, err := n.ExecSync(context.Background(), &runtimeapi.ExecSyncRequest{
		ContainerId: container, Cmd: []string{"/bin/sh", "-c", script}, Timeout: int64(patience.Seconds()),
	})
	if err != nil {
		n.t.Fatalf("ExecSync %s: %v", script, err)
	}
	return resp
}
