package supervisor

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// built is the real program, built once.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "podstead-test")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, command)
	cmd := exec.Command("go", "build", "-o", path, "podstead/cmd/podstead-supervisor")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = &exec.Error{Name: string(out), Err: err}
	}
	return path, err
})

// program returns the real podstead-supervisor.
func program(t testing.TB) string {
	t.Helper()
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func realEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, CommandEnv+"=") })
}

// front is a "podstead-supervisor run" of a test.
type front struct {
	t *testing.T
	*exec.Cmd
	done chan struct{}
}

// engineScript notes each of its lives and ends with code 3 on SIGTERM.
const engineScript = `trap 'exit 3' TERM; echo $$ $PODSTEAD_SUPERVISED >> "$0/lives"; while :; do sleep 0.05; done`

func startFront(t *testing.T, dir string, engine ...string) *front {
	t.Helper()
	return startFrontWithGrace(t, dir, bound, engine...)
}

// startFrontWithGrace has the engine killed that takes longer for its end.
func startFrontWithGrace(t *testing.T, dir string, grace time.Duration, engine ...string) *front {
	t.Helper()
	if len(engine) == 0 {
		engine = []string{"/bin/sh", "-c", engineScript, dir}
	}
	f := &front{t: t, done: make(chan struct{})}
	f.Cmd = exec.Command(program(t), append([]string{"run", "--run", dir, "--grace", grace.String(), "--"}, engine...)...)
	f.Env = realEnv()
	// A file, because the engine holds it open longer than the front.
	log, err := os.OpenFile(dir+"/front.log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	f.Stdout, f.Stderr = log, log
	if err := f.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		f.Wait()
		close(f.done)
	}()
	t.Cleanup(func() { f.end(syscall.SIGTERM) })
	return f
}

// end signals the front and returns its exit code.
func (f *front) end(sig syscall.Signal) int {
	f.Process.Signal(sig)
	return f.wait()
}

func (f *front) wait() int {
	select {
	case <-f.done:
	case <-time.After(bound):
		f.t.Errorf("the front does not end")
		f.Process.Kill()
		<-f.done
	}
	return f.ProcessState.ExitCode()
}

// lives returns the process IDs of the engine's lives, waiting for n.
func lives(t *testing.T, dir string, n int) []int {
	t.Helper()
	for deadline := time.Now().Add(bound); ; {
		b, _ := os.ReadFile(dir + "/lives")
		fields := strings.Fields(string(b))
		if len(fields) >= 2*n {
			var pids []int
			for i := 0; i < len(fields); i += 2 {
				pid, _ := strconv.Atoi(fields[i])
				pids = append(pids, pid)
				if fields[i+1] != dir {
					t.Errorf("the engine's environment says %s", fields[i+1])
				}
			}
			return pids
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(dir + "/front.log")
			t.Fatalf("the engine lived %q, not %d times: %s", b, n, log)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// gone waits until a supervisor has ended by itself.
func gone(t *testing.T, dir string) {
	t.Helper()
	for deadline := time.Now().Add(bound); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Lstat(dir + "/supervisor.sock"); os.IsNotExist(err) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the supervisor does not end")
		}
	}
}

func TestFrontRunsTheEngine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := startFront(t, dir)
	first := lives(t, dir, 1)[0]
	second := startFront(t, dir)
	if code := second.wait(); code != 1 {
		t.Errorf("a second front exits with %d", code)
	}
	if log, _ := os.ReadFile(dir + "/front.log"); !strings.Contains(string(log), "run engine: process "+strconv.Itoa(f.Process.Pid)+" runs it") {
		t.Errorf("a second front says %s", log)
	}
	syscall.Kill(first, syscall.SIGKILL)
	again := lives(t, dir, 2)[1]
	if again == first {
		t.Error("the engine does not run again")
	}
	if code := f.end(syscall.SIGTERM); code != 3 {
		t.Errorf("the front exits with %d", code)
	}
	if alive(again) {
		t.Error("the engine is alive")
	}
	gone(t, dir)
}

func TestFrontIsKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := startFront(t, dir)
	pid := lives(t, dir, 1)[0]
	f.end(syscall.SIGKILL)
	if !alive(pid) {
		t.Fatal("the engine is dead")
	}
	ctx, stop := context.WithCancel(testContext(t))
	code, err := RunEngine(ctx, dir, Engine{
		Argv: []string{"/bin/false"}, Stdout: os.Stdout, Stderr: os.Stderr, Grace: bound,
		Running: func(got int) {
			if got != pid {
				t.Errorf("the next front runs engine %d, not %d", got, pid)
			}
			stop()
		},
	})
	if code != 3 || err != nil {
		t.Errorf("the next front ends with %d, %v", code, err)
	}
	if got := lives(t, dir, 1); len(got) != 1 {
		t.Errorf("the engine lived %v", got)
	}
	gone(t, dir)
}

func TestFrontSurvivesItsSupervisor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := startFront(t, dir)
	pid := lives(t, dir, 1)[0]
	c, err := Connect(testContext(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Upgrade(testContext(t), ""); err != nil {
		t.Error(err)
	}
	old := c.daemonPid()
	c.Close()
	syscall.Kill(old, syscall.SIGKILL)
	for {
		if c, err = Connect(testContext(t), dir); err == nil && c.daemonPid() != old {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	defer c.Close()
	if !alive(pid) {
		t.Error("the engine is dead")
	}
	syscall.Kill(pid, syscall.SIGKILL)
	again := lives(t, dir, 2)[1]
	if code := f.end(syscall.SIGTERM); code != 3 || alive(again) {
		t.Errorf("the front exits with %d", code)
	}
	c.Close()
	gone(t, dir)
}

func TestFrontErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if code := startFront(t, dir, "/nonexistent/engine").wait(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	if log, _ := os.ReadFile(dir + "/front.log"); !strings.Contains(string(log), "/nonexistent/engine: no such file") {
		t.Errorf("it says %s", log)
	}
	stubborn := startFrontWithGrace(t, dir, 100*time.Millisecond, "/bin/sh", "-c", `trap "" TERM; echo $$ `+dir+` >> "$0/lives"; while :; do sleep 0.05; done`, dir)
	pid := lives(t, dir, 1)[0]
	if code := stubborn.end(syscall.SIGTERM); code != 128+9 || alive(pid) {
		t.Errorf("a stubborn engine: exit code %d", code)
	}
	gone(t, dir)
}

// TestContainerOutlivesTheFront shows that the supervisor stays for containers.
func TestContainerOutlivesTheFront(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := startFront(t, dir)
	lives(t, dir, 1)
	ctx := testContext(t)
	c, err := Connect(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	launchReal(t, ctx, c, "a", dir+"/a.log", "echo started; exec sleep 1000", true)
	c.Close()
	f.end(syscall.SIGTERM)
	time.Sleep(1200 * time.Millisecond) // longer than the supervisor's grace
	c, err = Connect(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p, err := c.Get(ctx, "a")
	if err != nil || p.State != Running {
		t.Fatalf("%+v, %v", p, err)
	}
	endReal(t, ctx, c, "a", unix.SIGKILL)
	c.Close()
	gone(t, dir)
}
