package restart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/remote"
	"podstead/test/host"
	"podstead/test/leak"
	"podstead/test/node"
	"podstead/test/peer"
	"podstead/test/programs"
)

// programVariable hands the path of our program to the tests inside the host.
const programVariable = "PODSTEAD_TEST_PODSTEAD"

func TestMain(m *testing.M) {
	if os.Getenv(programVariable) == "" {
		path, err := programs.Podstead()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Setenv(programVariable, path)
	}
	host.Main(m)
}

// patience bounds every wait.
const patience = 5 * time.Minute

// world is a node with one pod, whose containers live through what a test does.
type world struct {
	*testing.T
	node    *node.Node
	image   string
	sandbox *runtimeapi.PodSandboxConfig
	pod     string // id
}

// newWorld starts a node with these arguments beside its own.
func newWorld(t *testing.T, args ...string) *world {
	t.Helper()
	host.Require(t)
	leak.Check(t, leak.Scope{Cgroup: host.Cgroup()})
	w := settle(t, node.Run(t, os.Getenv(programVariable), "cri", args...))
	w.run()
	t.Cleanup(w.remove)
	return w
}

// settle brings the image to a node.
func settle(t *testing.T, n *node.Node) *world {
	t.Helper()
	registry, stop, err := peer.Serve()
	if errors.Is(err, peer.ErrNotInstalled) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	w := &world{T: t, node: n, image: registry + "/busybox:1"}
	w.sandbox = &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "pod", Namespace: "restart", Uid: "uid"},
		LogDirectory: t.TempDir(),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    host.Cgroup() + "/pod",
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}},
		},
	}
	w.call(func(ctx context.Context, r *remote.Runtime) error {
		_, err := r.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: w.image}})
		return err
	})
	return w
}

// run runs the sandbox.
func (w *world) run() {
	w.Helper()
	w.call(func(ctx context.Context, r *remote.Runtime) error {
		response, err := r.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: w.sandbox})
		w.pod = response.GetPodSandboxId()
		return err
	})
}

// remove removes the sandbox.
func (w *world) remove() {
	w.Helper()
	w.call(func(ctx context.Context, r *remote.Runtime) error {
		_, err := r.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: w.pod})
		return err
	})
}

// call makes one call with a client of its own, as crictl does. It must
// succeed, whatever is being restarted.
func (w *world) call(f func(context.Context, *remote.Runtime) error) {
	w.Helper()
	r, err := remote.New(w.node.Endpoint())
	if err != nil {
		w.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := f(ctx, r); err != nil {
		w.Fatal(err)
	}
}

// start starts a container with a script and returns its id.
func (w *world) start(name, script string) (id string) {
	w.Helper()
	w.call(func(ctx context.Context, r *remote.Runtime) error {
		created, err := r.CreateContainer(ctx, w.container(w.pod, name, script))
		if err != nil {
			return err
		}
		id = created.GetContainerId()
		_, err = r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		return err
	})
	return id
}

// container asks for a container with a script.
func (w *world) container(pod, name, script string) *runtimeapi.CreateContainerRequest {
	return &runtimeapi.CreateContainerRequest{
		PodSandboxId: pod, SandboxConfig: w.sandbox,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: name},
			Image:    &runtimeapi.ImageSpec{Image: w.image},
			Command:  []string{"sh", "-c", script},
			LogPath:  name + ".log",
			Stdin:    true,
			Linux:    &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
		},
	}
}

func (w *world) status(id string) (status *runtimeapi.ContainerStatus) {
	w.Helper()
	w.call(func(ctx context.Context, r *remote.Runtime) error {
		response, err := r.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		status = response.GetStatus()
		return err
	})
	return status
}

func (w *world) exec(id string, cmd ...string) (stdout string) {
	w.Helper()
	w.call(func(ctx context.Context, r *remote.Runtime) error {
		response, err := r.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: int64(patience.Seconds())})
		stdout = string(response.GetStdout())
		return err
	})
	return stdout
}

// lines returns what a container has printed.
func (w *world) lines(name string) []string {
	w.Helper()
	log, err := os.ReadFile(filepath.Join(w.sandbox.GetLogDirectory(), name+".log"))
	if err != nil {
		w.Fatal(err)
	}
	var lines []string
	for line := range bytes.Lines(log) {
		text, whole := strings.CutSuffix(string(line), "\n") // the last may be under way
		if fields := strings.SplitN(text, " ", 4); whole && len(fields) == 4 {
			lines = append(lines, fields[3])
		}
	}
	return lines
}

// kill kills a process of the node, of that program with part among its
// arguments, by SIGKILL.
func (w *world) kill(program, part string) {
	w.Helper()
	old := w.find(program, part)
	if old == 0 {
		w.Fatalf("no process of %s %s", program, part)
	}
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		w.Fatal(err)
	}
}

// find returns the pid of a process of the node, 0 if there is none.
func (w *world) find(program, part string) int {
	for _, pid := range w.node.Pids() {
		cmdline, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		if node.Program(pid) == program && bytes.Contains(cmdline, []byte("\x00"+part+"\x00")) {
			return pid
		}
	}
	return 0
}

// until waits until f holds.
func (w *world) until(what string, f func() bool) {
	w.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			w.Fatalf("waited in vain: %s", what)
		}
	}
}

// counter prints numbers without a gap, so that a lost line is seen.
const counter = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.005; done"

// wantCounted checks that a counter has lost no line.
func (w *world) wantCounted(name string) {
	w.Helper()
	for i, line := range w.lines(name) {
		if line != strconv.Itoa(i) {
			w.Fatalf("line %d of %s is %q", i, name, line)
		}
	}
}

// started prints when the container's first process started.
const started = "set -- $(cat /proc/1/stat); echo ${22}"

func TestEngineIsKilled(t *testing.T) {
	w := newWorld(t)
	id := w.start("counter", counter)
	mortal := w.start("mortal", "while ! test -e /go; do sleep 0.01; done; exit 7")
	first := w.exec(id, "sh", "-c", started)
	w.exec(mortal, "sh", "-c", "(sleep 0.2; touch /go) > /dev/null 2>&1 &")
	for range 5 {
		w.kill("podstead", "cri")
		// At once, while nobody or somebody new serves the socket.
		if state := w.status(id).GetState(); state != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Fatalf("the container is %s after the engine was killed", state)
		}
		seen := len(w.lines("counter"))
		w.until("the log goes on", func() bool { return len(w.lines("counter")) > seen })
		if got := w.exec(id, "sh", "-c", started); got != first {
			t.Errorf("its first process started at %q, and before it was %q", got, first)
		}
	}
	w.wantCounted("counter")
	w.until("the other container has exited", func() bool {
		return w.status(mortal).GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	if status := w.status(mortal); status.GetExitCode() != 7 || status.GetFinishedAt() < status.GetStartedAt() {
		t.Errorf("the other container: exit code %d, finished at %d, started at %d", status.GetExitCode(), status.GetFinishedAt(), status.GetStartedAt())
	}
}

func TestExitWhileNoEngineRuns(t *testing.T) {
	w := newWorld(t)
	id := w.start("mortal", "while ! test -e /go; do sleep 0.01; done; exit 9")
	engine := w.find("podstead", "cri")
	mortal := processesRunning("/go;")
	w.exec(id, "sh", "-c", "(sleep 0.3; touch /go) > /dev/null 2>&1 &")
	// Stopped, it cannot see the exit; killed then, it never has.
	if err := syscall.Kill(engine, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	w.until("the container's process has ended, and the supervisor has seen it", func() bool {
		return !slices.ContainsFunc(mortal, func(dir string) bool {
			_, err := os.Stat(dir)
			return err == nil
		})
	})
	ended := time.Now()
	if err := syscall.Kill(engine, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	status := w.status(id)
	if status.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || status.GetExitCode() != 9 || status.GetReason() != "Error" {
		t.Errorf("state %s, exit code %d, reason %q", status.GetState(), status.GetExitCode(), status.GetReason())
	}
	if at := time.Unix(0, status.GetFinishedAt()); at.After(ended.Add(time.Second)) {
		t.Errorf("it finished at %v, and had ended by %v", at, ended)
	}
}

// processesRunning lists processes whose command line has part, as directories.
func processesRunning(part string) []string {
	var found []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		cmdline, err := os.ReadFile(dir + "/cmdline")
		if err == nil && bytes.Contains(cmdline, []byte(part)) {
			found = append(found, dir)
		}
	}
	return found
}

func TestConnectedClientOutlivesEngine(t *testing.T) {
	w := newWorld(t)
	id := w.start("c", "sleep 1000")
	r, err := remote.New(w.node.Endpoint())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 5 {
		if _, err := r.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id}); err != nil {
			t.Fatalf("status: %v", err)
		}
		w.kill("podstead", "cri")
		// A call that was under way may fail; the next must not. This one finds
		// the connection broken, or not yet, which may make it one under way.
		_, first := r.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if _, err := r.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id}); err != nil {
			t.Fatalf("status: %v (first: %v)", err, first)
		}
	}
}

func TestSupervisorIsKilled(t *testing.T) {
	w := newWorld(t)
	id := w.start("counter", counter)
	w.until("it counts", func() bool { return len(w.lines("counter")) > 10 })
	w.kill("podstead-supervisor", "daemon")
	w.until("another supervisor runs", func() bool { return w.find("podstead-supervisor", "daemon") != 0 })
	if state := w.status(id).GetState(); state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("the container is %s after the supervisor was killed", state)
	}
	seen := len(w.lines("counter"))
	w.until("the log goes on", func() bool { return len(w.lines("counter")) > seen+10 })
	if got := w.exec(id, "echo", "hello"); got != "hello\n" {
		t.Errorf("exec prints %q", got)
	}
	w.call(func(ctx context.Context, r *remote.Runtime) error {
		_, err := r.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id})
		return err
	})
	if got := w.status(id).GetState(); got != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("the container is %s after stop", got)
	}
}

func TestSupervisorIsUpgraded(t *testing.T) {
	w := newWorld(t)
	id := w.start("counter", counter)
	before := w.find("podstead-supervisor", "daemon")
	for range 3 {
		supervisor := filepath.Join(filepath.Dir(os.Getenv(programVariable)), "podstead-supervisor")
		out, err := exec.Command(supervisor, "upgrade", "--run", w.node.Run).CombinedOutput()
		if err != nil {
			t.Fatalf("upgrade: %v\n%s", err, out)
		}
		seen := len(w.lines("counter"))
		w.until("the log goes on", func() bool { return len(w.lines("counter")) > seen })
		if got := w.exec(id, "echo", "hello"); got != "hello\n" {
			t.Errorf("exec prints %q", got)
		}
	}
	w.wantCounted("counter")
	if after := w.find("podstead-supervisor", "daemon"); after != before {
		t.Errorf("the supervisor's pid is %d, and was %d", after, before)
	}
}
