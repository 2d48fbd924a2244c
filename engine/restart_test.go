package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/config"
	"podstead/supervisor"
)

// TestRestart ends the engine while containers run, and one ends meanwhile: its
// exit code and time are right afterwards, the others go on and can be used.
func TestRestart(t *testing.T) { onHandlers(t, testRestart) }

func testRestart(t *testing.T, handlers ...config.Handler) {
	n := newNode(t, handlers...)
	ctx := context.Background()
	shared := n.run(n.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	}))
	pod := n.run(n.pod())
	running := n.ready(n.begin(pod, n.script(forever, func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{}
	})))
	ending := n.begin(pod, n.script(`echo ready; while [ ! -e /stop ]; do sleep 0.01; done; exit 7`))
	n.ready(ending)
	created := n.create(pod, n.script("exit 5"))
	before := n.status(running)

	if err := n.Engine.Close(); err != nil {
		t.Fatal(err)
	}
	left := time.Now()
	p, err := n.client.Get(ctx, ending)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/root/stop", p.Pid), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process has ended", func() bool {
		p, err := n.client.Get(ctx, ending)
		return err == nil && p.State == supervisor.Exited
	})
	back := time.Now()
	n.start()

	st := n.status(ending)
	if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 7 || st.Reason != "Error" {
		t.Errorf("ended meanwhile: %v", st)
	}
	if at := time.Unix(0, st.FinishedAt); at.Before(left) || at.After(back) {
		t.Errorf("finished at %v, not between %v and %v", at, left, back)
	}
	after := n.status(running)
	if after.State != runtimeapi.ContainerState_CONTAINER_RUNNING || after.StartedAt != before.StartedAt || after.CreatedAt != before.CreatedAt {
		t.Errorf("running: %v, before %v", after, before)
	}
	if out := n.sh(running, "grep Seccomp: /proc/self/status"); !strings.HasSuffix(string(out.Stdout), "\t2\n") {
		t.Errorf("exec after the restart: %q", out.Stdout)
	}
	if _, err := n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: created}); err != nil {
		t.Fatal(err)
	}
	if st := n.exited(created); st.ExitCode != 5 {
		t.Errorf("created before, started after: %v", st)
	}
	for _, id := range []string{pod, shared} {
		got, err := n.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
		if err != nil || got.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || got.Status.Network.Ip == "" {
			t.Errorf("sandbox: %v, %v", got, err)
		}
	}
	inShared := n.begin(shared, n.script("exit 0", func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	}))
	n.exited(inShared)
}

// rewrite edits a record behind the back of an engine that is not running.
func (n *node) rewrite(kind, id string, edit func(string) string) {
	n.t.Helper()
	file := filepath.Join(n.cfg.StateDir, kind, id, "record.json")
	b, err := os.ReadFile(file)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(edit(string(b))), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// TestReboot starts the engine on records of another boot, without the run
// directory and the processes, which a reboot takes: pods are there, not ready,
// containers have exited, nobody knows how, and all can be removed.
func TestReboot(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	pod := n.run(n.pod())
	c := n.ready(n.begin(pod, n.script(forever)))
	finished := n.begin(pod, n.script("exit 3"))
	n.exited(finished)
	if err := n.Engine.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.client.Signal(ctx, c, 9); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{c, finished} {
		eventually(t, "process is gone", func() bool { return n.client.Forget(ctx, id) == nil })
	}
	if err := removeRunDir(filepath.Join(n.cfg.RunDir, "sandboxes", pod)); err != nil {
		t.Fatal(err)
	}
	other := func(s string) string { return strings.ReplaceAll(s, n.bootID, "another-boot") }
	n.rewrite("sandboxes", pod, other)
	n.rewrite("containers", c, other)
	n.rewrite("containers", finished, other)
	n.start()

	st, err := n.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil || st.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("sandbox: %v, %v", st, err)
	}
	if st := n.status(c); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 255 || st.Reason != "Unknown" {
		t.Errorf("container: %v", st)
	}
	if st := n.status(finished); st.ExitCode != 3 {
		t.Errorf("container that had finished: %v", st)
	}
}

// TestBadRecords starts the engine on records that cannot be read: it starts,
// and what they stood for is gone from the kernel.
func TestBadRecords(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	broken, whole := n.run(n.pod()), n.run(n.pod())
	n.ready(n.begin(broken, n.script(forever)))
	good := n.ready(n.begin(whole, n.script(forever)))
	bad := n.ready(n.begin(whole, n.script(forever)))
	if err := n.Engine.Close(); err != nil {
		t.Fatal(err)
	}
	n.rewrite("sandboxes", broken, func(string) string { return "" })
	n.rewrite("containers", bad, func(s string) string { return s[:len(s)/2] })
	n.start()
	if got := n.status(good).State; got != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the good container is %v", got)
	}
	list, err := n.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil || len(list.Containers) != 1 {
		t.Errorf("containers: %v, %v", list, err)
	}
	if all, err := n.client.List(ctx); err != nil || len(all) != 1 {
		t.Errorf("processes: %v, %v", all, err)
	}
	for kind, id := range map[string]string{"sandboxes": broken, "containers": bad} {
		dir := filepath.Join(n.cfg.StateDir, kind, id)
		if left, _ := filepath.Glob(dir + "/*"); len(left) != 1 || filepath.Base(left[0]) != "record.bad" {
			t.Errorf("%s: left %v, want the record that was set aside", kind, left)
		}
		os.RemoveAll(dir)
	}
}

// TestHalfMade starts the engine on intents: a crash in the middle of a
// creation. They are undone.
func TestHalfMade(t *testing.T) { onHandlers(t, testHalfMade) }

func testHalfMade(t *testing.T, handlers ...config.Handler) {
	n := newNode(t, handlers...)
	ctx := context.Background()
	half := n.run(n.pod())
	pod := n.run(n.pod())
	c := n.create(pod, n.script(forever))
	if err := n.Engine.Close(); err != nil {
		t.Fatal(err)
	}
	n.rewrite("sandboxes", half, func(s string) string { return strings.Replace(s, `"Phase":"ready"`, `"Phase":"creating"`, 1) })
	n.rewrite("containers", c, func(s string) string { return strings.Replace(s, `"Phase":"created"`, `"Phase":"creating"`, 1) })
	n.start()
	pods, err := n.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(pods.Items) != 1 || pods.Items[0].Id != pod {
		t.Errorf("pods: %v, %v", pods, err)
	}
	if all, err := n.client.List(ctx); err != nil || len(all) != 0 {
		t.Errorf("processes: %v, %v", all, err)
	}
}

// TestSupervisorDies kills the supervisor: containers go on, another one takes
// them over, and exits, logs and execs are as before.
func TestSupervisorDies(t *testing.T) { onHandlers(t, testSupervisorDies) }

func testSupervisorDies(t *testing.T, handlers ...config.Handler) {
	n := newNode(t, handlers...)
	ctx := context.Background()
	pod := n.run(n.pod())
	c := n.ready(n.begin(pod, n.script("trap 'echo bye; exit 6' TERM; "+strings.TrimPrefix(forever, "trap 'exit 0' TERM; "))))
	waiting := n.create(pod, n.script("true"))
	slow := make(chan error, 1)
	go func() {
		_, err := n.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"sleep", "1"}})
		slow <- err
	}()
	n.killSupervisor(n.supervisorDir)
	select {
	case <-slow: // however it ended: it must
	case <-time.After(patience):
		t.Error("an exec does not return")
	}
	if len(handlers) > 0 {
		// Its process is made at the start, and nothing is lost.
		if _, err := n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: waiting}); err != nil {
			t.Error(err)
		}
	}
	if st := n.exited(waiting); len(handlers) == 0 && st.Reason != "Unknown" && st.Reason != "Error" {
		t.Errorf("a container that waited for its start: %v", st)
	}
	eventually(t, "exec works again", func() bool {
		out, err := n.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"echo", "back"}, Timeout: int64(patience.Seconds())})
		return err == nil && string(out.Stdout) == "back\n"
	})
	if st := n.status(c); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("status %v", st)
	}
	if _, err := n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c, Timeout: 30}); err != nil {
		t.Fatal(err)
	}
	st := n.exited(c)
	if st.ExitCode != 6 && st.Reason != "Unknown" {
		t.Errorf("status %v, want exit code 6, or an honest Unknown", st)
	}
	if log, err := os.ReadFile(st.LogPath); err != nil || !strings.Contains(string(log), " F bye\n") {
		t.Errorf("log %q, %v", log, err)
	}
	next := n.exited(n.begin(pod, n.script("exit 8")))
	if next.ExitCode != 8 {
		t.Errorf("a later container: %v", next)
	}
}

// TestExecsWhileSupervisorDies: each exec ends, as the command did or with an
// error, never with an exit code that the command does not have; and nothing of
// them stays (see node.end).
func TestExecsWhileSupervisorDies(t *testing.T) {
	n := newNode(t)
	c := n.ready(n.begin(n.run(n.pod()), n.script(forever)))
	three := func() bool {
		out, err := n.ExecSync(context.Background(), &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"sh", "-c", "exit 3"}})
		if err == nil && out.ExitCode != 3 {
			t.Errorf("exit 3 ends with %d", out.ExitCode)
		}
		return err == nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for ctx.Err() == nil {
				three()
			}
		})
	}
	for range 4 {
		eventually(t, "an exec works", three)
		n.killSupervisor(n.supervisorDir)
	}
	eventually(t, "an exec works", three)
	cancel()
	work.Wait()
}
