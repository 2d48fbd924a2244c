package supervisor

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// killSupervisor kills a supervisor and waits until it is dead.
func (f *fixture) killSupervisor() (pid int) {
	f.Helper()
	pid = f.daemonPid()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		f.Fatal(err)
	}
	defer unix.Close(pidfd)
	syscall.Kill(pid, syscall.SIGKILL)
	f.waitDead(pidfd)
	return pid
}

func (f *fixture) waitDead(pidfd int) {
	f.Helper()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(bound/time.Millisecond))
		if err == unix.EINTR {
			continue
		}
		if n != 1 {
			f.Fatalf("process does not end: %v", err)
		}
		return
	}
}

// counting is a program that writes numbered lines until its file is removed.
func (f *fixture) counting(id string) []byte {
	os.WriteFile(f.dir+"/"+id+".go", nil, 0o600)
	return sh(`i=0; while [ -e ` + f.dir + `/` + id + `.go ]; do i=$((i+1)); echo $i; done; printf 'end'; exit 5`)
}

// checkCounted checks a log of counting. A supervisor that was killed may have
// lost what it had read and not written yet, once.
func (f *fixture) checkCounted(id string, wasKilled bool) {
	f.Helper()
	log := f.logged(id, "stdout")
	n := 0
	for line := range strings.Lines(log) {
		if n++; line == itoa(n)+"\n" || line == "end\n" {
			continue
		}
		next, err := strconv.Atoi(strings.TrimSpace(line))
		if !wasKilled || err != nil || next < n || (next-n)*len(line) > 64<<10 {
			f.Fatalf("line %d is %q", n, line)
		}
		n, wasKilled = next, false
	}
	if !strings.HasSuffix(log, "\nend\n") {
		f.Errorf("log ends with %q", log[max(0, len(log)-20):])
	}
	if n < 100 {
		f.Errorf("only %d lines: this shows nothing", n)
	}
}

func TestEngineIsKilled(t *testing.T) {
	f := start(t)
	self, _ := os.Executable()
	engine := exec.Command(self, "holder", f.dir)
	stdout, _ := engine.StdoutPipe()
	if err := engine.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatal(line, err)
	}
	pid := f.run("a", f.counting("a")).Pid
	f.run("b", sh("read x; exit 6"), func(l *Launch) { l.Stdin = true })
	if _, err := f.Listen(f.ctx, "cri", "unix", f.dir+"/cri.sock"); err != nil {
		t.Fatal(err)
	}
	f.Client.Close()
	engine.Process.Kill()
	engine.Wait()
	// Nobody is connected now. Life goes on.
	f.eventually("more lines", func() bool { return len(f.logged("a", "stdout")) > 1000 })
	before := time.Now()
	os.Remove(f.dir + "/a.go")
	f.eventually("the end in the log", func() bool { return strings.HasSuffix(f.logged("a", "stdout"), "end\n") })
	f.eventually("the exit", func() bool { return !alive(pid) })
	conn, err := net.Dial("unix", f.dir+"/cri.sock")
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	time.Sleep(200 * time.Millisecond) // the engine comes back later than the exit
	after := time.Now()
	f.Client = f.connect()
	p := f.ended("a")
	if p.ExitCode != 5 || p.ExitedAt.Before(before) || p.ExitedAt.After(after) {
		t.Errorf("%+v, want an exit between %v and %v", p, before, after)
	}
	f.checkCounted("a", false)
	go f.Attach(f.ctx, "b", Streams{Stdin: strings.NewReader("\n")})
	if p := f.ended("b"); p.ExitCode != 6 {
		t.Errorf("%+v", p)
	}
}

func TestSupervisorIsKilled(t *testing.T) {
	f := start(t)
	f.run("counts", f.counting("counts"))
	f.run("reads", sh("read x; echo got $x; exit 6"), func(l *Launch) { l.Stdin = true })
	f.run("pty", argv("tty", "/bin/sh", "-c", "stty -echo; echo on; read x; echo got $x; exit 7"))
	f.run("dies", argv("/bin/sleep", "1000"))
	f.run("parked", argv("/bin/sleep", "1000"), func(l *Launch) { l.Start = false })
	if l, err := f.Listen(f.ctx, "cri", "unix", f.dir+"/cri.sock"); err != nil {
		t.Fatal(err)
	} else {
		defer l.Close()
	}
	dies, err := f.Get(f.ctx, "dies")
	if err != nil {
		t.Fatal(err)
	}
	events, err := f.Events(f.ctx)
	if err != nil {
		t.Fatal(err)
	}
	f.eventually("lines", func() bool { return len(f.logged("counts", "stdout")) > 100 })
	f.eventually("pty", func() bool { return strings.Contains(f.logged("pty", "stdout"), "on") })
	// Hold off the next supervisor until a container has died without one.
	os.Rename(daemonLog(f.dir), f.dir+"/first.log")
	if err := os.Mkdir(daemonLog(f.dir), 0o700); err != nil {
		t.Fatal(err)
	}
	old := f.killSupervisor()
	pidfd, err := unix.PidfdOpen(dies.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	unix.PidfdSendSignal(pidfd, syscall.SIGTERM, nil, 0)
	f.waitDead(pidfd)
	os.Remove(daemonLog(f.dir))
	for range events { // closed when the connection broke
	}
	if p := f.ended("dies"); p.ExitCode != 128+15 && !kernelForgets(t) {
		t.Errorf("%+v", p)
	}
	if f.daemonPid() == old {
		t.Error("no new supervisor")
	}
	f.ended("parked")
	os.Remove(f.dir + "/counts.go")
	if p := f.ended("counts"); p.ExitCode != 5 && !kernelForgets(t) {
		t.Errorf("%+v", p)
	}
	f.checkCounted("counts", true)
	go f.Attach(f.ctx, "reads", Streams{Stdin: strings.NewReader("me\n")})
	f.ended("reads")
	if log := f.logged("reads", "stdout"); log != "got me\n" {
		t.Errorf("%q", log)
	}
	go f.Attach(f.ctx, "pty", Streams{Stdin: strings.NewReader("me\n"), Stdout: io.Discard})
	if p := f.ended("pty"); p.ExitCode != 7 && !kernelForgets(t) {
		t.Errorf("%+v", p)
	}
	if log := f.logged("pty", "stdout"); log != "on\r\ngot me\r\n" {
		t.Errorf("%q", log)
	}
	if _, err := net.Dial("unix", f.dir+"/cri.sock"); err != nil {
		t.Error(err)
	}
	if _, err := f.Take(f.ctx, "cri"); err != nil {
		t.Error(err)
	}
	// And all goes on as before.
	f.run("new", sh("exit 3"))
	if p := f.ended("new"); p.ExitCode != 3 {
		t.Errorf("%+v", p)
	}
}

// kernelForgets tells whether the kernel keeps exit codes of processes that
// are no children, for pidfds (Linux 6.15).
func kernelForgets(t *testing.T) bool {
	cmd := exec.Command("/bin/true")
	pidfd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	err := unix.IoctlPidfdInfo(pidfd, &info)
	return err != nil || info.Mask&unix.PIDFD_INFO_EXIT == 0
}

func TestEnsureWhileTheLastSupervisorEnds(t *testing.T) {
	f := start(t)
	dir := t.TempDir()
	lock, err := os.OpenFile(dir+"/supervisor.lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(300*time.Millisecond, func() { lock.Close() })
	clients := make(chan *Client)
	for range 3 {
		go func() {
			c, err := Ensure(f.ctx, dir)
			if err != nil {
				t.Error(err)
			}
			clients <- c
		}()
	}
	pids := map[int]bool{}
	for range 3 {
		if c := <-clients; c != nil {
			pids[c.daemonPid()] = true
			defer c.Close()
		}
	}
	if len(pids) != 1 {
		t.Errorf("supervisors: %v", pids)
	}
}

func TestCallsUnderWayFailWhenTheConnectionBreaks(t *testing.T) {
	f := start(t)
	f.run("a", argv("/bin/sleep", "1000"))
	ended := make(chan error)
	go func() { ended <- f.Attach(f.ctx, "a", Streams{Stdout: io.Discard}) }()
	f.eventually("attached", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.wire.mu.Lock()
		defer f.wire.mu.Unlock()
		return len(f.wire.calls) == 1
	})
	c, err := Connect(f.ctx, f.dir)
	if err != nil {
		t.Fatal(err)
	}
	f.killSupervisor()
	if err := <-ended; !errors.Is(err, ErrDisconnected) {
		t.Errorf("attach ended with %v", err)
	}
	if _, err := c.List(f.ctx); !errors.Is(err, ErrDisconnected) {
		t.Errorf("a plain client says %v", err)
	}
	c.Close()
	if _, err := f.List(f.ctx); err != nil {
		t.Errorf("the engine's client says %v", err)
	}
}

func TestUpgradeUnderLoad(t *testing.T) {
	f := start(t)
	const writers = 4
	for i := range writers {
		f.run("w"+itoa(i), f.counting("w"+itoa(i)))
	}
	f.run("part", sh("printf half; read x; echo ' line'"), func(l *Launch) { l.Stdin = true })
	f.run("parked", sh("echo started"), func(l *Launch) { l.Start = false })
	f.run("pty", argv("tty", "/bin/sh", "-c", "stty -echo; echo on; read x; echo got $x; exit 7"))
	f.run("exited", sh("exit 9"))
	f.ended("exited")
	r, w, _ := os.Pipe()
	r.Close()
	f.Store(f.ctx, "kept", w)
	w.Close()
	events, err := f.Events(f.ctx)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	attached := make(chan error)
	ready := make(chan struct{}, 100)
	go func() {
		attached <- f.Attach(f.ctx, "pty", Streams{Stdin: afterSignal(ready, "me\n"), Stdout: &out})
	}()
	f.eventually("pty", func() bool { return strings.Contains(f.logged("pty", "stdout"), "on") })
	pid := f.daemonPid()
	for range 5 {
		n := len(f.logged("w0", "stdout"))
		f.eventually("more lines", func() bool { return len(f.logged("w0", "stdout")) > n })
		if err := f.Upgrade(f.ctx, ""); err != nil {
			t.Fatal(err)
		}
	}
	close(ready)
	for i := range writers {
		os.Remove(f.dir + "/w" + itoa(i) + ".go")
	}
	if _, err := f.Start(f.ctx, "parked"); err != nil {
		t.Error(err)
	}
	go f.Attach(f.ctx, "part", Streams{Stdin: strings.NewReader("\n")})
	want := map[string]int{"part": 0, "parked": 0, "pty": 7, "w0": 5, "w1": 5, "w2": 5, "w3": 5}
	for len(want) > 0 {
		e, ok := <-events // the same connection all the time
		if !ok {
			t.Fatalf("connection broke; missing: %v", want)
		}
		if code, ok := want[e.Process.ID]; !ok || code != e.Process.ExitCode {
			t.Errorf("%+v", e)
		}
		delete(want, e.Process.ID)
	}
	for i := range writers {
		f.checkCounted("w"+itoa(i), false)
	}
	if log := f.logged("part", "stdout"); log != "half line\n" {
		t.Errorf("partial line: %q", log)
	}
	if log := f.logged("parked", "stdout"); log != "started\n" {
		t.Errorf("parked: %q", log)
	}
	if err := <-attached; err != nil || !strings.HasSuffix(out.String(), "got me\r\n") {
		t.Errorf("attached: %q, %v", out.String(), err)
	}
	if p, err := f.Get(f.ctx, "exited"); err != nil || p.ExitCode != 9 {
		t.Errorf("%+v, %v", p, err)
	}
	if files, err := f.Take(f.ctx, "kept"); err != nil || len(files) != 1 {
		t.Error(err)
	} else {
		files[0].Close()
	}
	c, err := Connect(f.ctx, f.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.daemonPid() != pid {
		t.Errorf("the supervisor is process %d, was %d", c.daemonPid(), pid)
	}
}

// afterSignal is a reader that waits for a channel to close.
func afterSignal(c chan struct{}, s string) io.Reader {
	r, w := io.Pipe()
	go func() {
		<-c
		io.WriteString(w, s)
	}()
	return r
}

func TestUpgradeToABadProgramIsRefused(t *testing.T) {
	f := start(t)
	f.run("a", f.counting("a"))
	for _, exe := range []string{"/nonexistent", "/bin/false"} {
		if err := f.Upgrade(f.ctx, exe); err == nil {
			t.Errorf("upgraded to %s", exe)
		}
	}
	n := len(f.logged("a", "stdout"))
	f.eventually("more lines", func() bool { return len(f.logged("a", "stdout")) > n+1000 })
	os.Remove(f.dir + "/a.go")
	f.ended("a")
	f.checkCounted("a", false)
}

func TestUpgradeBySignal(t *testing.T) {
	f := start(t)
	f.run("a", argv("/bin/sleep", "1000"))
	ctx, cancel := context.WithTimeout(f.ctx, bound)
	defer cancel()
	syscall.Kill(f.daemonPid(), syscall.SIGHUP)
	f.eventually("upgrade", func() bool {
		log, _ := os.ReadFile(daemonLog(f.dir))
		return strings.Contains(string(log), "upgraded")
	})
	if p, err := f.Get(ctx, "a"); err != nil || p.State != Running {
		t.Errorf("%+v, %v", p, err)
	}
}
