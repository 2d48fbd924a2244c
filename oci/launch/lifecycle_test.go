package launch

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestTerminal talks to a shell on a pty of the container's own.
func TestTerminal(t *testing.T) {
	needRoot(t)
	spec := testSpec(rootfs(t), "tty; stty size; readlink /proc/self/fd/2; stat -c '%u %g %t' /dev/console; echo ready; read x; echo got $x")
	spec.Process.Terminal = true
	spec.Process.ConsoleSize = &specs.Box{Height: 33, Width: 99}
	spec.Process.User.UID = 1000
	p, err := Compile(spec, Options{ID: "box"})
	if err != nil {
		t.Fatal(err)
	}
	if got := talkTerminal(t, p, "hello\n"); !strings.Contains(got, "/dev/pts/0 33 99 /dev/pts/0 1000 5 88 ready") || !strings.HasSuffix(got, "got hello") {
		t.Errorf("output %q", got)
	}

	pid := start(t, mustCompile(t, testSpec(rootfs(t), "exec sleep 1000")))
	x, err := CompileExec(spec, spec.Process, ExecOptions{ID: "box/1", Pid: pid})
	if err != nil {
		t.Fatal(err)
	}
	if got := talkTerminal(t, x, "hello\n"); !strings.Contains(got, "/dev/pts/0 33 99 /dev/pts/0") {
		t.Errorf("exec: output %q", got)
	}
}

func mustCompile(t testing.TB, spec *specs.Spec) *Program {
	t.Helper()
	p, err := Compile(spec, Options{ID: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// talkTerminal runs a program with a terminal to its end, types something and
// returns the words it printed.
func talkTerminal(t *testing.T, p *Program, typed string) string {
	t.Helper()
	if !p.Terminal() {
		t.Fatal("program without a terminal")
	}
	c := forkOnly(t, p)
	defer c.Pidfd.Close()
	if c.Console == nil {
		t.Fatal("no console")
	}
	defer c.Console.Close()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	buf := make([]byte, 1000)
	for !strings.Contains(out.String(), "ready") {
		n, err := c.Console.Read(buf)
		if err != nil {
			t.Fatalf("output %q: %v", out.String(), err)
		}
		out.Write(buf[:n])
	}
	if _, err := io.WriteString(c.Console, typed); err != nil {
		t.Fatal(err)
	}
	io.Copy(&out, c.Console) // ends with EIO when the last process is gone
	unix.Wait4(c.Pid, nil, 0, nil)
	return strings.Join(strings.Fields(out.String()), " ")
}

// TestNothingLeaks fails launches at different steps, and runs some, and looks
// for what they left.
func TestNothingLeaks(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	good := testSpec(root, "exit 0")
	bad := testSpec(root, "true")
	bad.Mounts = append(bad.Mounts, specs.Mount{Destination: "/x", Type: "nofs"})
	missing := testSpec(root, "true")
	missing.Process.Args = []string{"foo"}
	source := testSpec(root, "true")
	source.Mounts = append(source.Mounts, bind("/usr", "/a"), bind("/no/such", "/b"))
	round := func() {
		for _, spec := range []*specs.Spec{good, bad, missing, source} {
			execute(t, mustCompile(t, spec))
		}
		c := forkOnly(t, mustCompile(t, good))
		if err := c.Abandon(); err != nil {
			t.Error(err)
		}
		unix.Wait4(c.Pid, nil, 0, nil)
		c.Pidfd.Close()
	}
	round()
	fds, mounts := openFiles(t), mountTable(t, root)
	for range 5 {
		round()
	}
	if now := openFiles(t); now > fds {
		t.Errorf("%d files open, %d before", now, fds)
	}
	if now := mountTable(t, root); now != mounts {
		t.Errorf("mounts are now\n%s\nwere\n%s", now, mounts)
	}
	if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("a child is left: %v", err)
	}
}

func forkOnly(t testing.TB, p *Program) *Child {
	t.Helper()
	files, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	c, err := Fork(p, files, Stdio{})
	for _, f := range files {
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func openFiles(t *testing.T) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// mountTable has the host's mounts that a container could have left; others
// come and go.
func mountTable(t *testing.T, root string) string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, root) || strings.Contains(line, " - mqueue ") || strings.Contains(line, " - devpts ") {
			list = append(list, line)
		}
	}
	return strings.Join(list, "")
}

// TestConcurrent launches from many goroutines of a busy process.
func TestConcurrent(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	p := mustCompile(t, testSpec(root, "echo $$ $(id -u)"))
	pid := start(t, mustCompile(t, testSpec(root, "exec sleep 1000")))
	spec := testSpec(root, "ps | grep -c '[s]leep 1000'")
	x, err := CompileExec(spec, spec.Process, ExecOptions{ID: "box/1", Pid: pid})
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var busy, wg sync.WaitGroup
	busy.Go(func() {
		var garbage [][]byte
		for {
			select {
			case <-stop:
				return
			default:
				garbage = append(garbage[:len(garbage)%100], make([]byte, 1<<12))
			}
		}
	})
	for range 8 {
		wg.Go(func() {
			for range 10 {
				if out, _, err := execute(t, p); err != nil || out != "1 0\n" {
					t.Errorf("output %q: %v", out, err)
				}
				// Born in another pid namespace, by a thread that borrows it.
				if out, _, err := execute(t, x); err != nil || out != "1\n" {
					t.Errorf("exec: output %q: %v", out, err)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	busy.Wait()
}

// TestParkedChild checks a child that waits for its start: it holds nothing of
// its forker, and ends when that is gone.
func TestParkedChild(t *testing.T) {
	needRoot(t)
	if root := os.Getenv("PODSTEAD_TEST_PARK"); root != "" {
		c := forkOnly(t, mustCompile(t, testSpec(root, "sleep 1000")))
		fmt.Printf("pid %d\n", c.Pid)
		os.Stdout.Close()
		unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestParkedChild$")
	cmd.Env = append(os.Environ(), "PODSTEAD_TEST_PARK="+rootfs(t))
	// A pipe that only the forker should hold: the test sees its end.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{w}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "pid ")))
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	r.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.ReadAll(r); err != nil {
		t.Errorf("the parked child holds a pipe of its forker's: %v", err)
	}
	cmd.Wait()
	if err != nil {
		return // gone already
	}
	defer unix.Close(pidfd)
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 10000); n != 1 {
		t.Errorf("the child lives on: %v", err)
		unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
	}
}

// TestKilledWhileParked kills a child before it is started.
func TestKilledWhileParked(t *testing.T) {
	needRoot(t)
	c := forkOnly(t, mustCompile(t, testSpec(rootfs(t), "true")))
	defer c.Pidfd.Close()
	unix.Kill(c.Pid, unix.SIGKILL)
	unix.Wait4(c.Pid, nil, 0, nil)
	if err := c.Start(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("got %v", err)
	}
}

// TestFailedStart removes what is to be executed after the child was prepared.
func TestFailedStart(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	c := forkOnly(t, mustCompile(t, testSpec(root, "true")))
	defer c.Pidfd.Close()
	if err := os.Remove(filepath.Join(root, "bin/sh")); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); !errors.Is(err, unix.ENOENT) || err.Error() != `exec: "sh": no such file or directory` {
		t.Errorf("got %v", err)
	}
	var status unix.WaitStatus
	unix.Wait4(c.Pid, &status, 0, nil)
	if status.ExitStatus() != 128 {
		t.Errorf("exit status %d", status.ExitStatus())
	}
}

// TestFileLimit starts containers from a process whose limit Go has raised.
func TestFileLimit(t *testing.T) {
	needRoot(t)
	if root := os.Getenv("PODSTEAD_TEST_NOFILE"); root != "" {
		expectOutput(t, testSpec(root, "ulimit -Sn"), Options{}, "321\n")
		return
	}
	cmd := exec.Command("/bin/sh", "-c", "")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Args[2] = "ulimit -Sn 321; exec " + exe + " -test.run='^TestFileLimit$'"
	cmd.Env = append(os.Environ(), "PODSTEAD_TEST_NOFILE="+rootfs(t))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestAdopt starts a child through a control socket that was handed on.
func TestAdopt(t *testing.T) {
	needRoot(t)
	p := mustCompile(t, testSpec(rootfs(t), "exit 5"))
	c := forkOnly(t, p)
	defer c.Pidfd.Close()
	b, err := p.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var q Program
	if err := q.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(c.Control.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	c.Control.Close()
	if err := Adopt(&q, c.Pid, c.StartTime, c.Pidfd, os.NewFile(uintptr(fd), "control")).Start(); err != nil {
		t.Fatal(err)
	}
	var status unix.WaitStatus
	unix.Wait4(c.Pid, &status, 0, nil)
	if status.ExitStatus() != 5 {
		t.Errorf("status %v", status)
	}
}

// TestCgroup joins a group in each hierarchy that this host has.
func TestCgroup(t *testing.T) {
	needRoot(t)
	var opt Options
	name := "podstead-test-" + strconv.Itoa(os.Getpid())
	for _, h := range []string{"pids", "memory", "freezer"} {
		parent := filepath.Join("/sys/fs/cgroup", h)
		if _, err := os.Stat(filepath.Join(parent, "tasks")); err != nil {
			continue
		}
		dir := filepath.Join(parent, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Rmdir(dir) })
		opt.CgroupJoin = append(opt.CgroupJoin, filepath.Join(dir, "tasks"))
	}
	for _, parent := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		if _, err := os.Stat(filepath.Join(parent, "cgroup.procs")); err == nil {
			opt.CgroupDir = filepath.Join(parent, name)
			if err := os.Mkdir(opt.CgroupDir, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Rmdir(opt.CgroupDir) })
			break
		}
	}
	spec := testSpec(rootfs(t), "cat /proc/self/cgroup")
	p, err := Compile(spec, opt)
	if err != nil {
		t.Fatal(err)
	}
	c := forkOnly(t, p)
	b, err := os.ReadFile(procFile(c.Pid, "cgroup"))
	if err != nil {
		t.Fatal(err)
	}
	want := len(opt.CgroupJoin)
	if opt.CgroupDir != "" {
		want++
	}
	if got := strings.Count(string(b), "/"+name+"\n"); got != want {
		t.Errorf("in %d of %d groups: %s", got, want, b)
	}
	c.Abandon()
	unix.Wait4(c.Pid, nil, 0, nil)
	c.Pidfd.Close()
	// Inside, the group is the root of what can be seen.
	out, _ := run(t, spec, opt)
	if got := strings.Count(out, ":/\n"); got < want || strings.Contains(out, name) {
		t.Errorf("seen from inside: %s", out)
	}
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}})
	spec.Process.Args[2] = "ls /sys/fs/cgroup/; ls /sys/fs/cgroup/pids | grep -c tasks; touch /sys/fs/cgroup/x 2>&1; cat /sys/fs/cgroup/pids/tasks | wc -l"
	out, _ = run(t, spec, opt)
	if len(opt.CgroupJoin) > 0 && !strings.Contains(out, "pids") {
		t.Errorf("cgroup mount: %s", out)
	}
	t.Log(out)
}

// TestStartAtOnce launches without a wait in between, with success and without.
func TestStartAtOnce(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	plain := testSpec(root, "exit 5")
	limited := withUserns(testSpec(root, "exit 5"))
	limited.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}}
	if err := os.Lchown(root, 100000, 200000); err != nil {
		t.Fatal(err)
	}
	missing := testSpec(root, "")
	missing.Process.Args = []string{"/script"}
	if err := os.WriteFile(filepath.Join(root, "script"), []byte("?"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		spec *specs.Spec
		want string
	}{{plain, ""}, {limited, ""}, {missing, `exec: "/script": exec format error`}} {
		p := mustCompile(t, c.spec)
		files, err := p.Open()
		if err != nil {
			t.Fatal(err)
		}
		child, err := ForkWith(p, files, ForkOptions{Start: true})
		for _, f := range files {
			f.Close()
		}
		if c.want != "" {
			if err == nil || err.Error() != c.want {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
				t.Errorf("a child is left: %v", err)
			}
			continue
		}
		if err != nil {
			t.Error(err)
			continue
		}
		var status unix.WaitStatus
		unix.Wait4(child.Pid, &status, 0, nil)
		child.Pidfd.Close()
		if status.ExitStatus() != 5 || child.StartTime == 0 {
			t.Errorf("status %v, start time %d", status, child.StartTime)
		}
	}
}

// TestSmallMemory runs a container with less memory than a Go process needs.
func TestSmallMemory(t *testing.T) {
	needRoot(t)
	name := "podstead-test-memory-" + strconv.Itoa(os.Getpid())
	var opt Options
	var limit string
	switch {
	case exists("/sys/fs/cgroup/memory/tasks"):
		dir := filepath.Join("/sys/fs/cgroup/memory", name)
		opt.CgroupJoin, limit = []string{filepath.Join(dir, "tasks")}, filepath.Join(dir, "memory.limit_in_bytes")
	case exists("/sys/fs/cgroup/cgroup.controllers"):
		if err := os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+memory"), 0); err != nil {
			t.Skip("no memory controller: ", err)
		}
		opt.CgroupDir = filepath.Join("/sys/fs/cgroup", name)
		limit = filepath.Join(opt.CgroupDir, "memory.max")
	default:
		t.Skip("no memory controller")
	}
	if err := os.Mkdir(filepath.Dir(limit), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Rmdir(filepath.Dir(limit)) })
	if err := os.WriteFile(limit, []byte("1048576"), 0); err != nil {
		t.Fatal(err)
	}
	spec := testSpec(rootfs(t), "")
	spec.Process.Args = []string{"echo", "small"}
	expectOutput(t, spec, opt, "small\n")
	for range 3 {
		if out, status := run(t, spec, opt); out != "small\n" {
			t.Errorf("status %v, output %q", status, out)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// TestParkedIsUndumpable: nobody inside may trace a child or look into its
// descriptors until it has become the container's own (CVE-2016-9962). A file
// of /proc that belongs to root in spite of the user is the sign.
func TestParkedIsUndumpable(t *testing.T) {
	needRoot(t)
	spec := testSpec(rootfs(t), "exec sleep 1000")
	spec.Process.User = specs.User{UID: 1000, GID: 1000}
	pid := start(t, mustCompile(t, spec))
	proc := *spec.Process
	x, err := CompileExec(spec, &proc, ExecOptions{ID: "box/1", Pid: pid})
	if err != nil {
		t.Fatal(err)
	}
	hook, err := CompileHook(spec, "/bin/true", specs.Hook{}, ExecOptions{ID: "box", Pid: pid})
	if err != nil {
		t.Fatal(err)
	}
	// A hook stays root, so that its files tell nothing.
	if before, _, _ := strings.Cut(hook.String(), "setns("); !strings.Contains(before, "set_dumpable(4, 0)") {
		t.Errorf("a hook enters the container dumpable:\n%s", before)
	}
	ours := mustCompile(t, spec)
	weak := weakened(ours, func(_ *Program, o *op) {
		if o.call == cSetDumpable {
			o.args[1].value = 1
		}
	})
	for _, p := range []*Program{ours, x, weak} {
		c := forkOnly(t, p)
		var st unix.Stat_t
		if err := unix.Stat(procFile(c.Pid, "environ"), &st); err != nil {
			t.Fatal(err)
		}
		if (st.Uid != 0) != (p == weak) {
			t.Errorf("weakened %v: /proc/%d/environ belongs to user %d", p == weak, c.Pid, st.Uid)
		}
		if exe, err := os.ReadDir(procFile(c.Pid, "fd")); err != nil || len(exe) > 4 {
			t.Errorf("descriptors of a parked child: %v %v", exe, err)
		}
		c.Abandon()
		unix.Wait4(c.Pid, nil, 0, nil)
		c.Pidfd.Close()
	}
}
