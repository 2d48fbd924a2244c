package conformance

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine"
	"podstead/engine/config"
	"podstead/test/host"
	"podstead/test/leak"
)

// TestShim runs a pod by containerd's shim for runc: logs, exit codes, execs,
// one that takes too long included, signals, and ends by force: of the container,
// of its stand-in, of the pod's shim.
func TestShim(t *testing.T) {
	host.Require(t)
	path := shimProgram(t)
	leak.Check(t, leak.Scope{Cgroup: host.Cgroup()})
	s := shimPod{T: t, e: newEngine(t, t.TempDir(), config.Handler{Name: "runc-shim", Type: config.Shim, Path: path})}
	s.run()
	defer s.remove()

	if st := s.ended(s.start("ends", "echo out; echo err >&2; exit 7")); st.ExitCode != 7 || st.Reason != "Error" {
		t.Errorf("%v", st)
	}
	if log := s.log("ends"); !strings.Contains(log, " stdout F out\n") || !strings.Contains(log, " stderr F err\n") {
		t.Errorf("log %q", log)
	}
	c := s.start("stays", "trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.05; done")
	s.eventually("it is ready", func() bool { return strings.Contains(s.log("stays"), "ready") })
	x, err := s.e.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"sh", "-c", "echo in; exit 3"}, Timeout: 60})
	if err != nil || x.ExitCode != 3 || string(x.Stdout) != "in\n" {
		t.Errorf("exec: %v, %v", x, err)
	}
	if _, err := s.e.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"sleep", "1001"}, Timeout: 1}); err == nil {
		t.Error("an exec that takes too long succeeds")
	}
	if x, err := s.e.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"sh", "-c", "ps | grep -c '[s]leep 1001'"}, Timeout: 60}); err != nil || string(x.Stdout) != "0\n" {
		t.Errorf("after an exec that took too long: %v, %v", x, err)
	}
	if _, err := s.e.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: c, Timeout: 60}); err != nil {
		t.Fatal(err)
	}
	if st := s.ended(c); st.ExitCode != 4 || !strings.Contains(s.log("stays"), "bye") {
		t.Errorf("%v, log %q", st, s.log("stays"))
	}
	stubborn := s.start("stubborn", "trap '' TERM; sleep 1000")
	if _, err := s.e.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: stubborn}); err != nil {
		t.Fatal(err)
	}
	if st := s.ended(stubborn); st.ExitCode != 137 {
		t.Errorf("%v", st)
	}
	s.loseStandIn(s.start("lost", "sleep 1000"))
	s.loseShim()
	s.remove()
	sockets, _ := filepath.Glob("/run/containerd/s/*")
	if len(sockets) > 0 {
		t.Errorf("sockets are left: %v", sockets)
	}
	s.run()
	if id, err := s.try("missing", []string{"/no/such"}); err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("a program that is not there: %s, %v", id, err)
	}
}

// shimVariable names another shim for runc than the one that is installed: see
// "make test-shim".
const shimVariable = "PODSTEAD_TEST_SHIM"

func shimProgram(t *testing.T) string {
	t.Helper()
	if path := os.Getenv(shimVariable); path != "" {
		return path
	}
	path, err := exec.LookPath("containerd-shim-runc-v2")
	if err != nil {
		t.Skip("containerd-shim-runc-v2 is not installed")
	}
	return path
}

// loseStandIn kills what stands for a container: the container has ended, and with
// it goes its shim.
func (s *shimPod) loseStandIn(id string) {
	s.Helper()
	s.killOne("/oci/" + id + "/task.json")
	if st := s.ended(id); st.ExitCode != 137 {
		s.Errorf("%v", st)
	}
	if _, err := s.e.RemoveContainer(s.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		s.Error(err)
	}
}

// loseShim kills the one shim that the pod's containers have: they have ended,
// and the pod is not ready.
func (s *shimPod) loseShim() {
	s.Helper()
	a, b := s.start("a", "sleep 1000"), s.start("b", "sleep 1000")
	s.killOne("-v2\x00-namespace\x00podstead\x00-id\x00")
	for _, id := range []string{a, b} {
		if st := s.ended(id); st.ExitCode != 137 || st.Reason != "Error" {
			s.Errorf("%v", st)
		}
	}
	s.eventually("the pod is not ready", func() bool {
		r, err := s.e.PodSandboxStatus(s.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.id})
		return err == nil && r.Status.State == runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	})
	if id, err := s.try("late", []string{"true"}); err == nil {
		s.Errorf("a container without a shim: %s", id)
	}
}

// killOne kills the process whose command line has text in it.
func (s *shimPod) killOne(text string) {
	s.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var found []int
	for _, f := range files {
		if b, _ := os.ReadFile(f); strings.Contains(string(b), text) && !strings.Contains(string(b), "\x00delete\x00") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			found = append(found, pid)
		}
	}
	if len(found) != 1 {
		s.Fatalf("processes %v have %q in their command lines", found, text)
	}
	if err := syscall.Kill(found[0], syscall.SIGKILL); err != nil {
		s.Fatal(err)
	}
}

// shimPod is a pod of the engine's default handler.
type shimPod struct {
	*testing.T
	e      *engine.Engine
	config *runtimeapi.PodSandboxConfig
	id     string
}

func (s *shimPod) run() {
	s.Helper()
	s.config = &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "shim", Namespace: "test", Uid: "shim"},
		LogDirectory: s.TempDir(),
		Linux:        &runtimeapi.LinuxPodSandboxConfig{CgroupParent: host.Cgroup() + "/shim"},
	}
	r, err := s.e.RunPodSandbox(s.Context(), &runtimeapi.RunPodSandboxRequest{Config: s.config})
	if err != nil {
		s.Fatal(err)
	}
	s.id = r.PodSandboxId
}

func (s *shimPod) remove() {
	if _, err := s.e.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.id}); err != nil {
		s.Error(err)
	}
}

func (s *shimPod) try(name string, command []string) (string, error) {
	r, err := s.e.CreateContainer(s.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: s.id, SandboxConfig: s.config, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: busyboxRef},
		Command: command, LogPath: name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}})
	if err != nil {
		return "", err
	}
	_, err = s.e.StartContainer(s.Context(), &runtimeapi.StartContainerRequest{ContainerId: r.ContainerId})
	return r.ContainerId, err
}

func (s *shimPod) start(name, script string) string {
	s.Helper()
	id, err := s.try(name, []string{"sh", "-c", script})
	if err != nil {
		s.Fatal(err)
	}
	return id
}

func (s *shimPod) log(name string) string {
	b, _ := os.ReadFile(filepath.Join(s.config.LogDirectory, name+".log"))
	return string(b)
}

func (s *shimPod) ended(id string) (st *runtimeapi.ContainerStatus) {
	s.Helper()
	s.eventually("the container has ended", func() bool {
		r, err := s.e.ContainerStatus(s.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			s.Fatal(err)
		}
		st = r.Status
		return st.State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return st
}

func (s *shimPod) eventually(what string, f func() bool) {
	s.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-deadline:
			s.Fatalf("not within a minute: %s", what)
		case <-tick.C:
		}
	}
}
