package supervisor

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLifeOfAProcess(t *testing.T) {
	f := start(t)
	before := time.Now()
	p := f.run("a", sh("echo out; echo err >&2; exit 7"), func(l *Launch) { l.Start = false })
	if p.State != Created || p.Pid == 0 || !p.StartedAt.IsZero() {
		t.Errorf("launched: %+v", p)
	}
	p, err := f.Start(f.ctx, "a")
	if err != nil || p.State != Running && p.State != Exited || p.StartedAt.Before(before) {
		t.Fatalf("started: %+v, %v", p, err)
	}
	p = f.ended("a")
	if p.ExitCode != 7 || p.ExitedAt.Before(p.StartedAt) || p.ExitedAt.After(time.Now()) {
		t.Errorf("ended: %+v", p)
	}
	if out, errs := f.logged("a", "stdout"), f.logged("a", "stderr"); out != "out\n" || errs != "err\n" {
		t.Errorf("log: %q, %q", out, errs)
	}
	if err := f.Signal(f.ctx, "a", 15); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the exit: %v", err)
	}
	if _, err := f.Start(f.ctx, "a"); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("start after the exit: %v", err)
	}
	if ps, err := f.List(f.ctx); err != nil || len(ps) != 1 || !reflect.DeepEqual(ps[0], p) {
		t.Errorf("list: %+v, %v", ps, err)
	}
	for range 2 {
		if err := f.Forget(f.ctx, "a"); err != nil {
			t.Error(err)
		}
	}
	if _, err := f.Get(f.ctx, "a"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("get after forget: %v", err)
	}
}

func TestLaunchErrors(t *testing.T) {
	f := start(t)
	_, _, err := f.launch(f.ctx, Launch{ID: "bad"}, argv("fail", "mount /data"), false)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "step 3: mount /data") {
		t.Errorf("failed fork: %v", err)
	}
	_, _, err = f.launch(f.ctx, Launch{ID: "bad", Log: LogFile{Path: "/nonexistent/x.log"}}, sh("true"), false)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/nonexistent/x.log") {
		t.Errorf("no log directory: %v", err)
	}
	for _, id := range []string{"", "..", "../a", "a b", strings.Repeat("x", 300), "a\n"} {
		if _, _, err := f.launch(f.ctx, Launch{ID: id}, sh("true"), false); err == nil {
			t.Errorf("ID %q was taken", id)
		}
	}
	f.run("a", sh("exec sleep 1000"))
	if _, _, err := f.launch(f.ctx, Launch{ID: "a"}, sh("true"), false); !errors.Is(err, os.ErrExist) {
		t.Errorf("launched twice: %v", err)
	}
	if err := f.Forget(f.ctx, "a"); err == nil {
		t.Error("a running process was forgotten")
	}
	for name, err := range map[string]error{
		"signal": f.Signal(f.ctx, "x", 15), "reopen": f.ReopenLog(f.ctx, "x"),
		"resize": f.Resize(f.ctx, "x", 1, 1), "attach": f.Attach(f.ctx, "x", Streams{Stdout: io.Discard}),
	} {
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s of an unknown process: %v", name, err)
		}
	}
}

func TestKillDuringTheLaunch(t *testing.T) {
	f := start(t)
	fifo := f.dir + "/fifo" // the launch waits for it
	syscall.Mkfifo(fifo, 0o600)
	launched := make(chan error)
	for range 2 { // the second call joins the first
		go func() {
			_, _, err := f.launch(f.ctx, Launch{ID: "a", Start: true}, argv("wait", fifo, "/bin/sleep", "1000"), false)
			launched <- err
		}()
	}
	f.eventually("launch under way", func() bool { return f.Signal(f.ctx, "a", 9) == nil })
	f.run("b", sh("true")) // others are not held up
	w, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for range 2 {
		if err := <-launched; !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("the launch ends with %v", err)
		}
	}
	if _, err := f.Get(f.ctx, "a"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
}

func TestLargeProgram(t *testing.T) {
	f := start(t)
	f.run("a", argv("/bin/sh", "-c", "echo ok", strings.Repeat("x", 100_000)))
	if f.ended("a").ExitCode != 0 || f.logged("a", "stdout") != "ok\n" {
		t.Error("a program larger than a message does not run")
	}
}

func TestExitBySignal(t *testing.T) {
	f := start(t)
	f.run("a", argv("/bin/sleep", "1000"))
	f.run("b", argv("/bin/sleep", "1000"), func(l *Launch) { l.Start = false })
	f.Signal(f.ctx, "a", 15)
	if p := f.ended("a"); p.ExitCode != 128+15 {
		t.Errorf("%+v", p)
	}
	f.Signal(f.ctx, "b", 9) // before its start
	if p := f.ended("b"); p.ExitCode != 128+9 || !p.StartedAt.IsZero() {
		t.Errorf("%+v", p)
	}
}

func TestStdioPassesThrough(t *testing.T) {
	f := start(t)
	in, inW, _ := os.Pipe()
	outR, out, _ := os.Pipe()
	defer outR.Close()
	l := Launch{ID: "c/exec1", Start: true}
	l.Stdio.Stdin, l.Stdio.Stdout, l.Stdio.Stderr = in, out, out
	if _, _, err := f.launch(f.ctx, l, sh("cat; echo err >&2; exit 3"), false); err != nil {
		t.Fatal(err)
	}
	in.Close()
	out.Close()
	inW.WriteString("hello\n")
	inW.Close()
	if b, err := io.ReadAll(outR); err != nil || string(b) != "hello\nerr\n" {
		t.Errorf("%q, %v", b, err)
	}
	if p := f.ended("c/exec1"); p.ExitCode != 3 {
		t.Errorf("%+v", p)
	}
}

func TestPtyGoesToItsLauncher(t *testing.T) {
	f := start(t)
	_, console, err := f.launch(f.ctx, Launch{ID: "c/exec1"}, argv("tty", "/bin/sh", "-c", "stty size; read x; echo got $x"), true)
	if err != nil || console == nil {
		t.Fatal(err)
	}
	defer console.Close()
	if err := unix.IoctlSetWinsize(int(console.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: 123, Row: 45}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Start(f.ctx, "c/exec1"); err != nil {
		t.Fatal(err)
	}
	console.WriteString("me\n")
	b, _ := io.ReadAll(console) // EIO at its end
	if s := string(b); !strings.Contains(s, "45 123") || !strings.Contains(s, "got me") {
		t.Errorf("%q", s)
	}
	f.ended("c/exec1")
}

func TestHangupOfALaunchersPty(t *testing.T) {
	f := start(t)
	_, console, err := f.launch(f.ctx, Launch{ID: "c/exec1", Start: true}, argv("tty", "/bin/sleep", "1000"), true)
	if err != nil {
		t.Fatal(err)
	}
	console.Close()
	if p := f.ended("c/exec1"); p.ExitCode != 128+1 {
		t.Errorf("%+v", p)
	}
}

func TestPtyIsLogged(t *testing.T) {
	f := start(t)
	f.run("a", argv("tty", "/bin/sh", "-c", "stty size; seq 10000; echo err >&2"), func(l *Launch) { l.Start = false })
	if err := f.Resize(f.ctx, "a", 80, 24); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Start(f.ctx, "a"); err != nil {
		t.Fatal(err)
	}
	f.ended("a")
	log := f.logged("a", "stdout")
	if !strings.HasPrefix(log, "24 80\r\n1\r\n2\r\n") || !strings.HasSuffix(log, "\n10000\r\nerr\r\n") {
		t.Errorf("%.100q … %q", log, log[max(0, len(log)-50):])
	}
}

func TestLogIsCompleteAtTheExitEvent(t *testing.T) {
	f := start(t)
	// 5 MB of lines, a line of 100,000 bytes, bytes that are no text, no end.
	f.run("a", sh(`seq 700000; head -c 100000 /dev/zero | tr '\0' x; echo; printf '\0\377'`))
	f.ended("a")
	var want bytes.Buffer
	for i := range 700000 {
		want.WriteString(itoa(i+1) + "\n")
	}
	want.WriteString(strings.Repeat("x", 100000) + "\n\x00\xff\n")
	if got := f.logged("a", "stdout"); got != want.String() {
		t.Errorf("log has %d bytes, not %d", len(got), want.Len())
	}
}

func TestLogShowsLinesAtOnce(t *testing.T) {
	f := start(t)
	f.run("a", sh("echo now; exec sleep 1000"))
	f.eventually("line in log", func() bool { return f.logged("a", "stdout") == "now\n" })
}

func TestInheritedOutputDoesNotHoldUpTheExit(t *testing.T) {
	f := start(t)
	fifo := f.dir + "/fifo"
	syscall.Mkfifo(fifo, 0o600)
	f.run("a", sh("(read x <"+fifo+"; echo late) & echo early; printf end"))
	f.ended("a")
	if log := f.logged("a", "stdout"); log != "early\nend\n" {
		t.Errorf("at the exit: %q", log)
	}
	w, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.WriteString("\n")
	w.Close()
	f.eventually("late line", func() bool { return f.logged("a", "stdout") == "early\nend\nlate\n" })
}

func TestReopenLog(t *testing.T) {
	f := start(t)
	f.run("a", sh("echo one; read x; echo two; exec sleep 1000"), func(l *Launch) { l.Stdin = true })
	f.eventually("first line", func() bool { return f.logged("a", "stdout") == "one\n" })
	os.Rename(f.log("a"), f.log("old"))
	if err := f.ReopenLog(f.ctx, "a"); err != nil {
		t.Fatal(err)
	}
	go f.Attach(f.ctx, "a", Streams{Stdin: strings.NewReader("\n")})
	f.eventually("second line", func() bool { return f.logged("a", "stdout") == "two\n" })
	if f.logged("old", "stdout") != "one\n" {
		t.Error("old file changed")
	}
	os.Remove(f.log("a"))
	f.Signal(f.ctx, "a", 9)
	f.ended("a")
	if err := f.ReopenLog(f.ctx, "a"); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("reopen after the exit: %v", err)
	}
	if _, err := os.Stat(f.log("a")); err == nil {
		t.Error("a new file appeared")
	}
}

func TestAttach(t *testing.T) {
	f := start(t)
	f.run("a", sh("while read x; do echo got $x; echo err $x >&2; done; echo end"), func(l *Launch) { l.Stdin, l.StdinOnce = true, true })
	var out, errs bytes.Buffer
	err := f.Attach(f.ctx, "a", Streams{Stdin: strings.NewReader("1\n2\n"), Stdout: &out, Stderr: &errs})
	if err != nil || out.String() != "got 1\ngot 2\nend\n" || errs.String() != "err 1\nerr 2\n" {
		t.Errorf("%q, %q, %v", out.String(), errs.String(), err)
	}
	f.ended("a")
	if log := f.logged("a", "stdout"); log != out.String() {
		t.Errorf("log: %q", log)
	}
}

func TestAttachPty(t *testing.T) {
	f := start(t)
	f.run("a", argv("tty", "/bin/sh", "-c", "stty -echo; echo ready; read x; echo got $x; exec sleep 1000"))
	ctx, cancel := context.WithCancel(f.ctx)
	in, inW := io.Pipe()
	outR, out := io.Pipe()
	ended := make(chan error)
	go func() { ended <- f.Attach(ctx, "a", Streams{Stdin: in, Stdout: out}) }()
	f.eventually("ready", func() bool { return strings.Contains(f.logged("a", "stdout"), "ready") })
	go io.WriteString(inW, "me\n")
	var got strings.Builder
	buf := make([]byte, 100)
	for !strings.Contains(got.String(), "got me\r\n") {
		n, err := outR.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got.Write(buf[:n])
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("attach ended with %v", err)
	}
	if p, err := f.Get(f.ctx, "a"); err != nil || p.State != Running {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestStdinStaysOpenForTheNext(t *testing.T) {
	f := start(t)
	f.run("a", sh("read x; echo $x; read x; echo $x"), func(l *Launch) { l.Stdin = true })
	for _, word := range []string{"one", "two"} {
		ctx, cancel := context.WithCancel(f.ctx)
		done := make(chan error)
		go func() { done <- f.Attach(ctx, "a", Streams{Stdin: strings.NewReader(word + "\n")}) }()
		f.eventually(word, func() bool { return strings.HasSuffix(f.logged("a", "stdout"), word+"\n") })
		cancel()
		<-done
	}
	if p := f.ended("a"); p.ExitCode != 0 {
		t.Errorf("%+v", p)
	}
}

func TestSlowReaderDoesNotHoldUpTheLog(t *testing.T) {
	f := start(t)
	f.run("a", sh("read x; seq 1000000"), func(l *Launch) { l.Stdin = true })
	block := make(chan struct{})
	ended := make(chan error)
	go func() {
		ended <- f.Attach(f.ctx, "a", Streams{Stdin: strings.NewReader("\n"), Stdout: blocked(block)})
	}()
	if p := f.ended("a"); p.ExitCode != 0 {
		t.Errorf("%+v", p)
	}
	close(block)
	if err := <-ended; !errors.Is(err, ErrSlowReader) {
		t.Errorf("attach ended with %v", err)
	}
	if log := f.logged("a", "stdout"); !strings.HasSuffix(log, "\n1000000\n") {
		t.Error("log is not complete")
	}
}

type blocked chan struct{}

func (b blocked) Write(p []byte) (int, error) { <-b; return len(p), nil }

func TestEventsAreInOrderAndComplete(t *testing.T) {
	f := start(t)
	events, err := f.Events(f.ctx)
	if err != nil {
		t.Fatal(err)
	}
	const n = 50
	go func() {
		for i := range n {
			f.launch(f.ctx, Launch{ID: "p" + itoa(i), Start: true}, sh("exit "+itoa(i)), false)
		}
	}()
	seen := map[string]bool{}
	for range n {
		e := <-events
		if e.Process.ID != "p"+itoa(e.Process.ExitCode) || seen[e.Process.ID] {
			t.Errorf("%+v", e)
		}
		seen[e.Process.ID] = true
	}
}

// A process that is dropped with its exit is not in the list of those who follow
// from just before it: it is among those that ended.
func TestFollowMissesNobody(t *testing.T) {
	f := start(t)
	w, call, err := f.watch(f.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"first", "second"} {
		if _, _, err := f.launch(f.ctx, Launch{ID: id, Start: true, Once: true}, sh("sleep 0.1; exit 3"), false); err != nil {
			t.Fatal(err)
		}
		f.eventually(id+" is dropped", func() bool {
			_, err := f.Get(f.ctx, id)
			return errors.Is(err, os.ErrNotExist)
		})
	}
	got, err := f.follow(f.ctx, w, call)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.List) != 0 || len(got.Ended) != 2 || got.Ended[0].Process.ID != "first" || got.Ended[1].Process.ExitCode != 3 {
		t.Errorf("%+v", got)
	}
	f.run("third", sh("exit 4"))
	if e := <-got.Events; e.Process.ID != "third" || e.Process.ExitCode != 4 {
		t.Errorf("%+v", e)
	}
	if got, err := f.Follow(f.ctx); err != nil || len(got.List) != 1 || len(got.Ended) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestListeners(t *testing.T) {
	f := start(t)
	path := f.dir + "/cri.sock"
	l, err := f.Listen(f.ctx, "cri", "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	l.Close()
	f.Client.Close()
	// No engine runs: a client can connect, and waits.
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	f.Client = f.connect()
	l, err = f.Listen(f.ctx, "cri", "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	served.Close()
	l.Close()
	tcp, err := f.Listen(f.ctx, "tcp", "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	again, err := f.Listen(f.ctx, "tcp", "tcp", "127.0.0.1:0")
	if err != nil || again.Addr().String() != tcp.Addr().String() {
		t.Errorf("%v, %v", again.Addr(), err)
	}
	again.Close()
}

func TestStore(t *testing.T) {
	f := start(t)
	if _, err := f.Take(f.ctx, "kept"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("take of nothing: %v", err)
	}
	r, w, _ := os.Pipe()
	if err := f.Store(f.ctx, "kept", r, w); err != nil {
		t.Fatal(err)
	}
	r.Close()
	w.WriteString("hello")
	w.Close()
	f.Client.Close()
	f.Client = f.connect()
	files, err := f.Take(f.ctx, "kept")
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	buf := make([]byte, 10)
	if n, err := files[0].Read(buf); err != nil || string(buf[:n]) != "hello" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	files[0].Close()
	files[1].Close()
	f.Drop(f.ctx, "kept")
	if _, err := f.Take(f.ctx, "kept"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("take after drop: %v", err)
	}
}

func itoa(n int) string { return string(appendInt(nil, n)) }

func appendInt(b []byte, n int) []byte {
	if n >= 10 {
		b = appendInt(b, n/10)
	}
	return append(b, byte('0'+n%10))
}

// A listener whose open file blocks does not end when it is closed: the copies
// that client and supervisor keep of it must leave that as it is.
func TestListenersDoNotBlock(t *testing.T) {
	f := start(t)
	for _, again := range []bool{false, true} {
		l, err := f.Listen(f.ctx, "cri", "unix", f.dir+"/cri.sock")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		raw, err := l.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var flags int
		raw.Control(func(fd uintptr) { flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0) })
		if err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("taken again %t: flags %#x, %v; want O_NONBLOCK", again, flags, err)
		}
	}
}
