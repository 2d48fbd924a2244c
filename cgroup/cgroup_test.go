package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The test binary doubles as the processes that live in groups.
func TestMain(m *testing.M) {
	switch os.Getenv("CGROUP_TEST_CHILD") {
	case "":
		os.Exit(m.Run())
	case "bomb":
		bomb()
	case "eat":
		eat()
	case "exec":
		execute()
	}
	os.Exit(1)
}

// execute executes itself without end, with threads that have to go each time.
func execute() {
	for range 100 {
		go func() {
			runtime.LockOSThread()
			unix.Select(0, nil, nil, nil, nil)
		}()
	}
	time.Sleep(time.Millisecond)
	_ = syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}

// bomb forks without end: each process starts two of itself.
func bomb() {
	for range 2 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = os.Environ()
		_ = cmd.Start()
	}
	for { // Go ends a program of which every goroutine waits for another
		unix.Select(0, nil, nil, nil, nil)
	}
}

// eat uses memory until it is killed.
func eat() {
	var all [][]byte
	for {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
		if len(all) > 1024 {
			os.Exit(3)
		}
	}
}

func detect(t testing.TB) *Hierarchy {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes control groups")
	}
	h, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// newGroup makes a group in a tree of the test's own.
func newGroup(t testing.TB, h *Hierarchy) *Group {
	t.Helper()
	name := strings.NewReplacer("/", "-", "#", "-").Replace(t.Name())
	top := h.Group(fmt.Sprintf("/podstead-test-%d-%s", os.Getpid(), name))
	t.Cleanup(func() {
		ctx := deadline(t)
		if err := top.Kill(ctx); err != nil {
			t.Error(err)
		}
		if err := top.Remove(ctx); err != nil {
			t.Error(err)
		}
		if top.Exists() {
			t.Errorf("%s still exists", top.Path())
		}
	})
	g := top.Child("a")
	if err := g.Create(); err != nil {
		t.Fatal(err)
	}
	return g
}

// start runs a command that joins the group by itself before it becomes the
// given one, and reaps it when it ends.
func start(t testing.TB, g *Group, script string, env ...string) *exec.Cmd {
	t.Helper()
	join := "set -e; "
	for _, f := range g.JoinFiles() {
		join += "echo 0 > " + f + "; "
	}
	cmd := exec.Command("/bin/sh", "-c", join+"echo joined; "+script)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	if dir := g.Dir(); dir != "" {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		cmd.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "joined\n" {
		t.Fatalf("child said %q", line)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func ptr[T any](v T) *T { return &v }

func TestCreateAndRemoveAreIdempotent(t *testing.T) {
	h := detect(t)
	g := newGroup(t, h)
	if err := g.Create(); err != nil {
		t.Errorf("second Create: %v", err)
	}
	if !g.Exists() {
		t.Error("does not exist")
	}
	for range 2 {
		if err := g.Remove(deadline(t)); err != nil {
			t.Error(err)
		}
	}
	if g.Exists() {
		t.Error("exists after Remove")
	}
	if err := g.Kill(deadline(t)); err != nil {
		t.Errorf("Kill of a missing group: %v", err)
	}
	if p, err := g.Procs(); err != nil || len(p) != 0 {
		t.Errorf("Procs of a missing group: %v, %v", p, err)
	}
}

func TestRefusedPaths(t *testing.T) {
	h := detect(t)
	for _, p := range []string{"", "/", "/..", "a-b.slice:prefix:name", "/a\nb"} {
		g := h.Group(p)
		if err := g.Create(); err == nil {
			t.Errorf("Create %q: no error", p)
		}
		if err := g.Kill(deadline(t)); err == nil {
			t.Errorf("Kill %q: no error", p)
		}
		if err := g.Remove(deadline(t)); err == nil {
			t.Errorf("Remove %q: no error", p)
		}
	}
	if got := h.Group("/x/../../y").Path(); got != "/y" {
		t.Errorf("path is %q", got)
	}
	if err := h.Group("/x").Child("../y").Create(); err == nil {
		t.Error("Child ../y: no error")
	}
}

func TestJoinAndKill(t *testing.T) {
	h := detect(t)
	g := newGroup(t, h)
	sub := g.Child("sub")
	if h.Unified() {
		// The no-internal-process rule: processes live in leaves.
		g = g.Child("leaf")
		if err := g.Create(); err != nil {
			t.Fatal(err)
		}
		sub = g
	} else if err := sub.Create(); err != nil {
		t.Fatal(err)
	}
	a := start(t, g, "exec sleep 1000")
	b := start(t, sub, "exec sleep 1000")
	pids, err := g.Procs()
	if err != nil || !slices.Contains(pids, a.Process.Pid) || !slices.Contains(pids, b.Process.Pid) || len(pids) != 2 {
		t.Fatalf("processes are %v (%v), want %d and %d", pids, err, a.Process.Pid, b.Process.Pid)
	}
	if err := g.Kill(deadline(t)); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []*exec.Cmd{a, b} {
		if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus) != 9 {
			t.Errorf("child ended with %v", err)
		}
	}
}

// A process that is in the v1 hierarchies alone, as another runtime's would be.
func TestKillFindsProcessesOutsideUnified(t *testing.T) {
	h := detect(t)
	if h.Unified() {
		t.Skip("cgroup v2 only")
	}
	g := newGroup(t, h)
	v1 := &Hierarchy{v1: h.v1}
	cmd := start(t, v1.Group(g.Path()), "exec sleep 1000")
	if err := g.Kill(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("child lives")
	}
}

func TestKillFrozen(t *testing.T) {
	h := detect(t)
	g := newGroup(t, h)
	cmd := start(t, g, "exec sleep 1000")
	if err := g.Freeze(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if f, err := g.Frozen(); !f || err != nil {
		t.Errorf("Frozen: %v, %v", f, err)
	}
	if err := g.Kill(deadline(t)); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
}

func TestFreezeStopsAndThawContinues(t *testing.T) {
	h := detect(t)
	g := newGroup(t, h)
	counter := filepath.Join(t.TempDir(), "n")
	start(t, g, "while :; do echo x >> "+counter+"; sleep 0.01; done")
	if err := g.Freeze(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := g.Thaw(deadline(t)); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(counter)
	waitFor(t, "the process to go on", func() bool {
		now, _ := os.ReadFile(counter)
		return len(now) > len(before)
	})
	if f, err := g.Frozen(); f || err != nil {
		t.Errorf("Frozen: %v, %v", f, err)
	}
}

// TestFreezeOfExec: a process whose threads are to end for its execve is frozen,
// too, though those that v1 has frozen already do not end.
func TestFreezeOfExec(t *testing.T) {
	g := newGroup(t, detect(t))
	start(t, g, "CGROUP_TEST_CHILD=exec exec "+os.Args[0])
	for range 500 {
		if err := g.Freeze(deadline(t)); err != nil {
			t.Fatal(err)
		}
		if err := g.Thaw(deadline(t)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond) // it is to come to another execve
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	ctx := deadline(t)
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestKillForkBomb(t *testing.T) {
	h := detect(t)
	for _, v := range []struct {
		name string
		h    *Hierarchy
	}{{"host", h}, {"v1 only", &Hierarchy{v1: h.v1}}} {
		t.Run(v.name, func(t *testing.T) {
			if len(v.h.v1) == 0 && v.h != h {
				t.Skip("cgroup v2 only")
			}
			g := newGroup(t, v.h)
			if err := g.Set(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](300)}}); err != nil {
				t.Fatal(err)
			}
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			start(t, g, "exec "+exe+" 2>/dev/null", "CGROUP_TEST_CHILD=bomb")
			waitFor(t, "the bomb to spread", func() bool {
				p, _ := g.Procs()
				return len(p) > 10
			})
			if err := g.Kill(deadline(t)); err != nil {
				t.Fatal(err)
			}
			if p, err := g.Procs(); len(p) > 0 || err != nil {
				t.Errorf("left: %v, %v", p, err)
			}
		})
	}
}

func TestRemoveSaysWhoIsThere(t *testing.T) {
	h := detect(t)
	g := newGroup(t, h)
	cmd := start(t, g, "exec sleep 1000")
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err := g.Remove(ctx)
	if err == nil || !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), fmt.Sprint(cmd.Process.Pid)) {
		t.Errorf("error is %v", err)
	}
}

func TestOOMKillIsCounted(t *testing.T) {
	h := detect(t)
	g := newGroup(t, h)
	r := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](20 << 20)}}
	if h.HasSwap() {
		r.Memory.Swap = r.Memory.Limit
	}
	if err := g.Set(r); err != nil {
		t.Fatal(err)
	}
	if n, err := g.OOMKills(); n != 0 || err != nil {
		t.Fatalf("OOM kills before: %d, %v", n, err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := start(t, g, "exec "+exe, "CGROUP_TEST_CHILD=eat")
	if err := cmd.Wait(); cmd.ProcessState.Sys().(syscall.WaitStatus) != 9 {
		t.Errorf("child ended with %v", err)
	}
	if n, err := g.OOMKills(); n != 1 || err != nil {
		t.Errorf("OOM kills: %d, %v", n, err)
	}
	parent := h.Group(filepath.Dir(g.Path()))
	if n, err := parent.OOMKills(); n != 1 || err != nil {
		t.Errorf("OOM kills of the parent: %d, %v", n, err)
	}
}

func TestStats(t *testing.T) {
	h := detect(t)
	g := newGroup(t, h)
	r := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](64 << 20)}}
	if err := g.Set(r); err != nil {
		t.Fatal(err)
	}
	start(t, g, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 1000")
	waitFor(t, "processor time", func() bool {
		s, err := g.Stats()
		if err != nil {
			t.Fatal(err)
		}
		return s.CPUNanoseconds > 0 && s.MemoryBytes > 0 && s.RSSBytes > 0 && s.PageFaults > 0 && s.Pids >= 1
	})
	s, _ := g.Stats()
	if s.MemoryLimitBytes != 64<<20 {
		t.Errorf("memory limit %d", s.MemoryLimitBytes)
	}
	if s.WorkingSetBytes > s.MemoryBytes {
		t.Errorf("working set %d of %d", s.WorkingSetBytes, s.MemoryBytes)
	}
	if h.HasSwap() && s.SwapLimitBytes != Unlimited {
		t.Errorf("swap limit %d", s.SwapLimitBytes)
	}
	if _, err := g.Pressure("cpu"); err != nil {
		t.Error(err)
	}
}

func BenchmarkCreateSetRemove(b *testing.B) {
	h := detect(b)
	parent := newGroup(b, h)
	r := &specs.LinuxResources{
		CPU:     &specs.LinuxCPU{Shares: ptr[uint64](512), Quota: ptr[int64](50000), Period: ptr[uint64](100000)},
		Memory:  &specs.LinuxMemory{Limit: ptr[int64](64 << 20)},
		Pids:    &specs.LinuxPids{Limit: ptr[int64](100)},
		Devices: append([]specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, DefaultDevices()...),
	}
	var create, set, remove time.Duration
	for i := 0; b.Loop(); i++ {
		g := parent.Child(fmt.Sprint(i))
		t0 := time.Now()
		if err := g.Create(); err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if err := g.Set(r); err != nil {
			b.Fatal(err)
		}
		t2 := time.Now()
		if err := g.Remove(context.Background()); err != nil {
			b.Fatal(err)
		}
		t3 := time.Now()
		create, set, remove = create+t1.Sub(t0), set+t2.Sub(t1), remove+t3.Sub(t2)
	}
	b.ReportMetric(float64(create.Microseconds())/float64(b.N), "create-µs")
	b.ReportMetric(float64(set.Microseconds())/float64(b.N), "set-µs")
	b.ReportMetric(float64(remove.Microseconds())/float64(b.N), "remove-µs")
}

func BenchmarkStats(b *testing.B) {
	h := detect(b)
	g := newGroup(b, h)
	for b.Loop() {
		if _, err := g.Stats(); err != nil {
			b.Fatal(err)
		}
	}
}
