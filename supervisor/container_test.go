package supervisor

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/oci/launch"
	"podstead/supervisor/internal/protocol"
	"podstead/sys"
)

// These tests launch real containers under the real program.

// startReal starts the real program on a run directory of its own.
func startReal(t testing.TB) (ctx context.Context, dir string, c *Client) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	ctx, dir = testContext(t), t.TempDir()
	startDaemon(t, dir)
	return ctx, dir, connectReal(t, ctx, dir)
}

// startDaemon starts the real program, which must end by itself.
func startDaemon(t testing.TB, dir string) {
	t.Helper()
	cmd := exec.Command(program(t), "daemon", "--run", dir)
	cmd.Env = protocol.SmallPages(realEnv()) // as Ensure does
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			cmd.Process.Kill()
		}
		cmd.Wait()
	})
}

func connectReal(t testing.TB, ctx context.Context, dir string) *Client {
	t.Helper()
	for {
		c, err := Connect(ctx, dir)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			return c
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

// containerSpec is a small container of busybox.
func containerSpec(t testing.TB, script string) *specs.Spec {
	t.Helper()
	root := t.TempDir()
	b, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs busybox-static: ", err)
	}
	for _, d := range []string{"bin", "proc", "dev"} {
		os.Mkdir(filepath.Join(root, d), 0o755)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "sleep", "echo", "cat", "true", "tty"} {
		os.Symlink("busybox", filepath.Join(root, "bin", name))
	}
	return &specs.Spec{
		Root:    &specs.Root{Path: root},
		Process: &specs.Process{Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin"}, Cwd: "/"},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
		}},
	}
}

// launchReal launches a container.
func launchReal(t testing.TB, ctx context.Context, c *Client, id, log, script string, start bool) Process {
	t.Helper()
	p, err := launch.Compile(containerSpec(t, script), launch.Options{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	return launchProgram(t, ctx, c, Launch{ID: id, Program: p, Log: LogFile{Path: log}, Start: start})
}

func launchProgram(t testing.TB, ctx context.Context, c *Client, l Launch) Process {
	t.Helper()
	files, err := l.Program.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer sys.CloseAll(files)
	l.Files = files
	p, _, err := c.Launch(ctx, l)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// endReal signals a process (0: no signal), waits for its end and forgets it.
func endReal(t testing.TB, ctx context.Context, c *Client, id string, sig syscall.Signal) Process {
	t.Helper()
	events, err := c.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if sig != 0 {
		c.Signal(ctx, id, int(sig))
	}
	p, err := c.Get(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	for p.State != Exited {
		e, ok := <-events
		if !ok {
			t.Fatalf("no event of %s", id)
		}
		if e.Process.ID == id {
			p = e.Process
		}
	}
	if err := c.Forget(ctx, id); err != nil {
		t.Error(err)
	}
	return p
}

func TestContainer(t *testing.T) {
	t.Parallel()
	ctx, dir, c := startReal(t)
	p := launchReal(t, ctx, c, "a", dir+"/a.log", `echo $$; tty; echo to >/dev/stderr; read x </dev/null; exec sleep 1000`, false)
	if p.State != Created {
		t.Errorf("%+v", p)
	}
	if err := c.Upgrade(ctx, ""); err != nil { // with a child that waits
		t.Fatal(err)
	}
	if p, err := c.Start(ctx, "a"); err != nil || p.State != Running {
		t.Fatalf("%+v, %v", p, err)
	}
	exec, err := launch.CompileExec(containerSpec(t, ""), &specs.Process{Args: []string{"sh", "-c", "echo in $$; exit 4"}, Env: []string{"PATH=/bin"}, Cwd: "/"}, launch.ExecOptions{ID: "a/1", Pid: p.Pid})
	if err != nil {
		t.Fatal(err)
	}
	r, w, _ := os.Pipe()
	launchProgram(t, ctx, c, Launch{ID: "a/1", Program: exec, Stdio: launch.Stdio{Stdout: w}, Start: true})
	w.Close()
	var got [100]byte
	n, _ := r.Read(got[:])
	if p := endReal(t, ctx, c, "a/1", 0); p.ExitCode != 4 || !strings.HasPrefix(string(got[:n]), "in ") {
		t.Errorf("exec: %q, %+v", got[:n], p)
	}
	for { // it has something to say first
		b, err := os.ReadFile(dir + "/a.log")
		if strings.Contains(string(b), " stdout F 1\n") && strings.Contains(string(b), " stderr F to\n") {
			break
		}
		if err != nil || ctx.Err() != nil {
			t.Fatalf("log: %s, %v", b, err)
		}
		time.Sleep(time.Millisecond)
	}
	if p := endReal(t, ctx, c, "a", unix.SIGKILL); p.ExitCode != 137 {
		t.Errorf("%+v", p)
	}
}

// execer execs in a container of its own, for tests of what is dropped when its
// exit was told.
type execer struct {
	*testing.T
	ctx       context.Context
	dir       string
	c         *Client
	container Process
}

func newExecer(t *testing.T) *execer {
	ctx, dir, c := startReal(t)
	return &execer{t, ctx, dir, c, launchReal(t, ctx, c, "a", "", "exec sleep 1000", true)}
}

// exec runs a program with an input.
func (x *execer) exec(id string, stdin *os.File, args ...string) (Process, error) {
	x.Helper()
	program, err := launch.CompileExec(containerSpec(x.T, ""), &specs.Process{Args: args, Cwd: "/"}, launch.ExecOptions{ID: id, Pid: x.container.Pid})
	if err != nil {
		x.Fatal(err)
	}
	files, err := program.Open()
	if err != nil {
		x.Fatal(err)
	}
	defer sys.CloseAll(files)
	p, _, err := x.c.Launch(x.ctx, Launch{ID: id, Program: program, Files: files, Stdio: launch.Stdio{Stdin: stdin}, Start: true, Once: true})
	return p, err
}

// held begins a process that exits with a code when it is let go.
func (x *execer) held(id string, code int) (release func()) {
	x.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		x.Fatal(err)
	}
	defer r.Close()
	p, err := x.exec(id, r, "/bin/sh", "-c", fmt.Sprintf("read x; exit %d", code))
	if err != nil || p.State != Running || p.ID != id || p.StartTicks == 0 {
		x.Fatalf("%+v, %v", p, err)
	}
	return func() { w.Close() }
}

// left lists the processes that the supervisor knows; each has a record.
func (x *execer) left() (ids []string) {
	x.Helper()
	processes, err := x.c.List(x.ctx)
	if err != nil {
		x.Fatal(err)
	}
	for _, p := range processes {
		ids = append(ids, p.ID)
	}
	records, err := filepath.Glob(x.dir + "/" + protocol.StateDir + "/*.process")
	if err != nil || len(records) != len(ids) {
		x.Errorf("records %v of %v: %v", records, ids, err)
	}
	return ids
}

// TestOnce: a process whose exit nobody is going to ask for leaves nothing when
// it was told, an upgrade in between or not. Without anybody to tell it stays,
// and a failed launch leaves nothing either way.
func TestOnce(t *testing.T) {
	t.Parallel()
	x := newExecer(t)
	ctx, c := x.ctx, x.c
	x.held("a/1", 3)()
	for p, err := c.Get(ctx, "a/1"); p.State != Exited; p, err = c.Get(ctx, "a/1") {
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	if _, err := x.exec("a/2", nil, "/no/such/program"); err == nil || !strings.Contains(err.Error(), `exec: "/no/such/program": no such file`) {
		t.Errorf("nothing was executed, and the error is %v", err)
	}
	if ids := x.left(); !slices.Equal(ids, []string{"a", "a/1"}) {
		t.Errorf("not told: %v are left", ids)
	}
	events, err := c.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	x.held("a/3", 4)()
	if e := <-events; e.Process.ID != "a/3" || e.Process.ExitCode != 4 {
		t.Errorf("%+v", e)
	}
	defer x.held("a/4", 5)() // only a signal ends it
	if err := c.Upgrade(ctx, ""); err != nil {
		t.Fatal(err)
	}
	if err := c.Signal(ctx, "a/4", int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	if e := <-events; e.Process.ID != "a/4" || e.Process.ExitCode != 137 {
		t.Errorf("%+v", e)
	}
	if ids := x.left(); !slices.Equal(ids, []string{"a", "a/1"}) {
		t.Errorf("told: %v are left", ids)
	}
	if err := c.Forget(ctx, "a/1"); err != nil {
		t.Error(err)
	}
	endReal(t, ctx, c, "a", unix.SIGKILL)
}

// TestOnceAtOnce: the exit of one that ends before its launch was answered is in
// the answer or, should it take longer after all, an event, and never both. Other
// clients have an event of each.
func TestOnceAtOnce(t *testing.T) {
	t.Parallel()
	x := newExecer(t)
	other, err := Connect(x.ctx, x.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	own, err := x.c.Events(x.ctx)
	if err != nil {
		t.Fatal(err)
	}
	others, err := other.Events(x.ctx)
	if err != nil {
		t.Fatal(err)
	}
	answered := 0
	for i := range 50 {
		id := fmt.Sprint("a/", i)
		p, err := x.exec(id, nil, "/bin/sh", "-c", fmt.Sprintf("exit %d", i))
		if err != nil {
			t.Fatal(err)
		}
		if p.State == Exited {
			answered++
		} else if e := <-own; e.Process.ID == id {
			p = e.Process
		}
		if p.ID != id || p.State != Exited || p.ExitCode != i || p.ExitedAt.Before(p.StartedAt) {
			t.Errorf("%+v", p)
		}
		if e := <-others; e.Process.ID != id || e.Process.ExitCode != i {
			t.Errorf("the other client's event %d: %+v", i, e)
		}
	}
	t.Logf("%d of 50 were answered when they had ended", answered)
	// What comes next is of somebody else: no event was left over.
	x.held("a/last", 6)()
	if e := <-own; e.Process.ID != "a/last" {
		t.Errorf("%+v", e)
	}
	if ids := x.left(); !slices.Equal(ids, []string{"a"}) {
		t.Errorf("%v are left", ids)
	}
	endReal(t, x.ctx, x.c, "a", unix.SIGKILL)
}

// TestOnceKilled: SIGKILL ends one whose launch is under way, whenever it comes.
func TestOnceKilled(t *testing.T) {
	t.Parallel()
	x := newExecer(t)
	events, err := x.c.Events(x.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		id := fmt.Sprint("a/", i)
		done := make(chan error, 1)
		var p Process
		go func() {
			var err error
			p, err = x.exec(id, nil, "/bin/sleep", "1000")
			done <- err
		}()
		for {
			err := x.c.Signal(x.ctx, id, int(unix.SIGKILL))
			if err == nil {
				break
			}
			if !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
		}
		err := <-done
		if err == nil && p.State != Exited { // it was there already
			p = (<-events).Process
		}
		if err == nil && (p.ID != id || p.ExitCode != 137) || err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("%s: %+v, %v", id, p, err)
		}
	}
	if ids := x.left(); !slices.Equal(ids, []string{"a"}) {
		t.Errorf("%v are left", ids)
	}
	endReal(t, x.ctx, x.c, "a", unix.SIGKILL)
}

func TestFailedStartIsNamed(t *testing.T) {
	t.Parallel()
	ctx, dir, c := startReal(t)
	spec := containerSpec(t, "")
	spec.Process.Args = []string{"/no/such/program"}
	for _, at := range []bool{true, false} {
		program, err := launch.Compile(spec, launch.Options{ID: "a"})
		if err != nil {
			t.Fatal(err)
		}
		files, err := program.Open()
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = c.Launch(ctx, Launch{ID: "a", Program: program, Files: files, Log: LogFile{Path: dir + "/a.log"}, Start: at})
		sys.CloseAll(files)
		if !at && err == nil {
			_, err = c.Start(ctx, "a")
		}
		if err == nil || !strings.Contains(err.Error(), "/no/such/program") || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("it says %v", err)
		}
		if ps, err := c.List(ctx); len(ps) != 0 {
			t.Errorf("%+v, %v are left", ps, err)
		}
	}
}

func TestContainersOutliveTheirSupervisor(t *testing.T) {
	t.Parallel()
	ctx, dir, c := startReal(t)
	f := &fixture{T: t, ctx: ctx, dir: dir, Client: c}
	const n = 5
	for i := range n {
		id := fmt.Sprintf("c%d", i)
		launchReal(t, ctx, c, id, f.log(id), "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo $i; done; echo end; exec sleep 1000", i > 0)
	}
	f.eventually("lines", func() bool { return f.logged("c1", "stdout") != "" })
	f.killSupervisor()
	startDaemon(t, dir)
	f.Client = connectReal(t, ctx, dir)
	if p := endReal(t, ctx, f.Client, "c0", 0); !p.StartedAt.IsZero() { // it waited for its start
		t.Errorf("%+v", p)
	}
	for i := 1; i < n; i++ {
		id := fmt.Sprintf("c%d", i)
		f.eventually("the end of the log", func() bool { return strings.HasSuffix(f.logged(id, "stdout"), "\n2000\nend\n") })
		p := endReal(t, ctx, f.Client, id, unix.SIGKILL)
		if p.ExitCode != 137 && !kernelForgets(t) {
			t.Errorf("%+v", p)
		}
	}
	f.Client.Close()
	gone(t, dir)
}

// TestBadClients shows that nobody but its owner reaches the supervisor, and
// that nonsense does not harm it.
func TestBadClients(t *testing.T) {
	t.Parallel()
	ctx, dir, c := startReal(t)
	launchReal(t, ctx, c, "a", dir+"/a.log", "exec sleep 1000", true)
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := connect(fd, dir); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			b := make([]byte, random.IntN(100))
			for i := range b {
				b[i] = byte(random.Uint32())
			}
			if len(b) > 2 {
				b[0], b[1] = byte(random.IntN(int(protocol.Store))), 0 // a request
			}
			unix.Sendmsg(fd, b, unix.UnixRights(0, 1)[:random.IntN(2)*unix.CmsgSpace(8)], nil, unix.MSG_NOSIGNAL)
		}
		unix.Close(fd)
	}
	if p, err := c.Get(ctx, "a"); err != nil || p.State != Running {
		t.Errorf("%+v, %v", p, err)
	}
	other := exec.Command("/proc/self/exe", "connect", dir)
	for d := dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	os.Chmod(dir+"/supervisor.sock", 0o666)
	other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := other.CombinedOutput(); err != nil || string(out) != "refused\n" {
		t.Errorf("another user: %s, %v", out, err)
	}
	ps, err := c.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ps {
		endReal(t, ctx, c, p.ID, 9)
	}
}

// TestChurnLeaksNothing launches many containers and looks at the
// supervisor's descriptors.
func TestChurnLeaksNothing(t *testing.T) {
	t.Parallel()
	ctx, dir, c := startReal(t)
	pid := c.daemonPid()
	count := func() int {
		names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		return len(names)
	}
	churn := func(n int) {
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				id := fmt.Sprintf("c%d", i)
				launchReal(t, ctx, c, id, dir+"/"+id+".log", "echo hello", i%3 != 0)
				if i%3 == 0 {
					c.Signal(ctx, id, 9)
				}
			})
		}
		wg.Wait()
		for i := range n {
			endReal(t, ctx, c, fmt.Sprintf("c%d", i), 0)
		}
	}
	churn(10)
	base := count()
	for range 5 {
		churn(10)
	}
	if n := count(); n > base {
		names, _ := exec.Command("ls", "-l", fmt.Sprintf("/proc/%d/fd", pid)).Output()
		t.Errorf("%d descriptors, before %d: %s", n, base, names)
	}
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if len(children) > 0 {
		t.Errorf("children are left: %s", children)
	}
}

// TestMemory prints what the supervisor costs. It asserts the promise.
func TestMemory(t *testing.T) {
	ctx, dir, c := startReal(t)
	pid := c.daemonPid()
	none := memory(t, pid)
	const n = 100
	for i := range n {
		launchReal(t, ctx, c, fmt.Sprintf("c%d", i), fmt.Sprintf("%s/c%d.log", dir, i), "echo hello; exec sleep 1000", true)
	}
	hundred := memory(t, pid)
	t.Logf("KiB private/PSS: %v with none, %v with %d containers", none, hundred, n)
	const promised = 8 << 10 // KiB
	if hundred[0] > promised {
		t.Errorf("%d KiB private memory with %d containers, promised are %d", hundred[0], n, promised)
	}
	for i := range n {
		endReal(t, ctx, c, fmt.Sprintf("c%d", i), 9)
	}
}

// memory returns a process's private memory and its PSS in KiB.
func memory(t testing.TB, pid int) (kib [2]int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var v int
		for i, prefix := range []string{"Private_", "Pss:"} {
			if strings.HasPrefix(line, prefix) {
				fmt.Sscan(strings.Fields(line)[1], &v)
				kib[i] += v
			}
		}
	}
	return kib
}

func TestProgramIsSmall(t *testing.T) {
	st, err := os.Stat(program(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", st.Size())
	if st.Size() > 6<<20 {
		t.Errorf("podstead-supervisor has %d bytes, promised are 6 MiB", st.Size())
	}
}

// TestProgramIsReadOnly: a container may have a child of the supervisor execute
// /proc/self/exe, and must not be able to write to it once no supervisor runs
// (CVE-2019-5736), neither before nor after an upgrade.
func TestProgramIsReadOnly(t *testing.T) {
	ctx, dir, c := startReal(t)
	try := func(what string) {
		p := launchReal(t, ctx, c, what, "", "true", false)
		err := unix.Access(fmt.Sprintf("/proc/%d/exe", p.Pid), unix.W_OK)
		if err != unix.EROFS {
			t.Errorf("%s: write to the program of a parked child: %v", what, err)
		}
		endReal(t, ctx, c, what, syscall.SIGKILL)
	}
	try("before")
	if err := c.Upgrade(ctx, ""); err != nil {
		t.Fatal(err)
	}
	c = connectReal(t, ctx, dir)
	try("after")
}
