package supervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shCommand is a command line that leaves a process, which runs script, behind. It
// runs it no sooner than the shell has closed its files, at the earliest while that
// ends: the shell would reap it otherwise.
func shCommand(dir, script string) *CommandLine {
	pid := filepath.Join(dir, "pid")
	const leave = `
		[ -p left ] || mkfifo left
		{ read x <left; exec /bin/sh -c "$1"; } &
		echo $! >pid
		exec 3>left`
	return &CommandLine{
		Run: []string{"/bin/sh", "-c", leave, "sh", script},
		Dir: dir, Env: []string{"PATH=/usr/bin:/bin"}, PidFile: pid, Timeout: time.Minute,
	}
}

// awaitExit returns a process as it is after its end.
func awaitExit(t *testing.T, c *Client, id string) Process {
	t.Helper()
	ctx := testContext(t)
	for {
		p, err := c.Get(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if p.State == Exited {
			if err := c.Forget(ctx, id); err != nil {
				t.Fatal(err)
			}
			return p
		}
		time.Sleep(time.Millisecond) // between two looks, under the context's bound
	}
}

// TestCommand launches processes by programs that make them and end: the
// supervisor learns how they end, however soon that is, and has their output.
func TestCommand(t *testing.T) {
	ctx, _, c := startReal(t)
	work := t.TempDir()
	for i, script := range []string{"echo out; echo err >&2; exit 7", "echo out; echo err >&2; sleep 0.2; exit 7"} {
		id, log := fmt.Sprint("c", i), filepath.Join(work, fmt.Sprint(i, ".log"))
		if _, _, err := c.Launch(ctx, Launch{ID: id, Command: shCommand(work, script), Log: LogFile{Path: log}, Start: true}); err != nil {
			t.Fatal(err)
		}
		if p := awaitExit(t, c, id); p.ExitCode != 7 || p.StartedAt.IsZero() {
			t.Errorf("%s: %+v", script, p)
		}
		text, err := os.ReadFile(log)
		if err != nil || !strings.Contains(string(text), " stdout F out\n") || !strings.Contains(string(text), " stderr F err\n") {
			t.Errorf("log: %s, %v", text, err)
		}
	}
}

// TestCommandIsKilled ends a process by a signal, and one whose launch is under
// way.
func TestCommandIsKilled(t *testing.T) {
	ctx, _, c := startReal(t)
	work := t.TempDir()
	p, _, err := c.Launch(ctx, Launch{ID: "c", Command: shCommand(work, "exec sleep 1000"), Start: true})
	if err != nil {
		t.Fatal(err)
	}
	if ppid := parent(t, p.Pid); ppid != c.daemonPid() {
		t.Errorf("its parent is %d, not the supervisor %d", ppid, c.daemonPid())
	}
	if err := c.Signal(ctx, "c", 15); err != nil {
		t.Fatal(err)
	}
	if p := awaitExit(t, c, "c"); p.ExitCode != 128+15 {
		t.Errorf("%+v", p)
	}
	slow := shCommand(work, "exec sleep 1000")
	slow.Then = []string{"/bin/sh", "-c", "while [ ! -e go ]; do sleep 0.01; done"}
	launched := make(chan error, 1)
	go func() {
		_, _, err := c.Launch(ctx, Launch{ID: "slow", Command: slow, Start: true})
		launched <- err
	}()
	for c.Signal(ctx, "slow", 9) != nil && ctx.Err() == nil { // until it is under way
		time.Sleep(time.Millisecond)
	}
	if err := os.WriteFile(filepath.Join(work, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-launched; err == nil {
		t.Error("a launch that was killed succeeded")
	}
	if list, err := c.List(ctx); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
}

// TestCommandFails names what failed, and leaves nothing.
func TestCommandFails(t *testing.T) {
	ctx, _, c := startReal(t)
	work := t.TempDir()
	later := shCommand(work, "exec sleep 1000")
	later.Then = []string{"/bin/sh", "-c", "exit 3"}
	foreign := shCommand(work, "true")
	foreign.Run = []string{"/bin/sh", "-c", fmt.Sprintf("echo %d >pid", os.Getpid())}
	stuck := shCommand(work, "true")
	stuck.Run, stuck.Timeout = []string{"/bin/sleep", "1000"}, 10*time.Millisecond
	missing := shCommand(work, "true")
	missing.Run = []string{"/no/such"}
	none := shCommand(work, "true")
	none.Run = []string{"/bin/true"}
	noTerminal := shCommand(work, "exec sleep 1000")
	noTerminal.Console, noTerminal.Timeout = filepath.Join(work, "tty"), 100*time.Millisecond
	for _, x := range []struct {
		command *CommandLine
		want    string
	}{
		{later, "/bin/sh -c: exit status 3"},
		{foreign, "is no child of the supervisor"},
		{stuck, "does not end within 10ms"},
		{missing, "/no/such: no such file"},
		{none, "pid: no such file"},
		{noTerminal, "no terminal came"},
		{&CommandLine{}, "without arguments"},
	} {
		os.Remove(filepath.Join(work, "pid"))
		_, _, err := c.Launch(ctx, Launch{ID: "c", Command: x.command, Start: true})
		if err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%v, want %s", err, x.want)
		}
	}
	if list, err := c.List(ctx); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
	if left, err := os.ReadDir(work); err != nil || len(left) > 1 {
		t.Errorf("left: %v, %v", left, err)
	}
	for _, pid := range children(t, c.daemonPid()) {
		t.Errorf("process %d is left", pid)
	}
}

// TestCommandInForeground runs a program that is the process itself.
func TestCommandInForeground(t *testing.T) {
	ctx, _, c := startReal(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l := Launch{ID: "c/x", Command: &CommandLine{Run: []string{"/bin/sh", "-c", "echo $A; exit 4"}, Env: []string{"A=b"}}, Start: true}
	l.Stdio.Stdout = w
	if _, _, err := c.Launch(ctx, l); err != nil {
		t.Fatal(err)
	}
	w.Close()
	buf := make([]byte, 10)
	if n, err := r.Read(buf); err != nil || string(buf[:n]) != "b\n" {
		t.Errorf("output %q, %v", buf[:n], err)
	}
	if p := awaitExit(t, c, "c/x"); p.ExitCode != 4 {
		t.Errorf("%+v", p)
	}
}

func parent(t *testing.T, pid int) (ppid int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Sscan(string(b[strings.LastIndexByte(string(b), ')')+4:]), &ppid)
	return ppid
}

// children lists the children of a process that are not dead.
func children(t *testing.T, pid int) (pids []int) {
	t.Helper()
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range files {
		b, _ := os.ReadFile(file)
		for field := range strings.FieldsSeq(string(b)) {
			var child int
			fmt.Sscan(field, &child)
			if unix.Kill(child, 0) == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

// TestOrphans: from the first command on, what others leave behind is the
// supervisor's, which does not leave it a zombie; also after an upgrade. Until
// then it does not even hear of its children by signals.
func TestOrphans(t *testing.T) {
	ctx, _, c := startReal(t)
	if catchesSIGCHLD(t, c.daemonPid()) {
		t.Error("SIGCHLD is caught though nobody leaves orphans")
	}
	for i := range 2 {
		work := t.TempDir()
		command := shCommand(work, "exec sleep 1000")
		command.Run[2] = "while [ ! -e go ]; do sleep 0.01; done & echo $! >orphan; " + command.Run[2]
		id := fmt.Sprint("c", i)
		if _, _, err := c.Launch(ctx, Launch{ID: id, Command: command, Start: true}); err != nil {
			t.Fatal(err)
		}
		var orphan int
		if text, err := os.ReadFile(filepath.Join(work, "orphan")); err != nil {
			t.Fatal(err)
		} else if _, err := fmt.Sscan(string(text), &orphan); err != nil {
			t.Fatal(err)
		}
		if ppid := parent(t, orphan); ppid != c.daemonPid() {
			t.Errorf("the orphan's parent is %d, not the supervisor %d", ppid, c.daemonPid())
		}
		if i == 0 {
			if err := c.Upgrade(ctx, ""); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(work, "go"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for dir := fmt.Sprint("/proc/", orphan); ; time.Sleep(time.Millisecond) {
			if _, err := os.Stat(dir); os.IsNotExist(err) {
				break
			}
			if ctx.Err() != nil {
				t.Fatal("the orphan was not reaped")
			}
		}
		if err := c.Signal(ctx, id, 9); err != nil {
			t.Fatal(err)
		}
		awaitExit(t, c, id)
	}
}

// catchesSIGCHLD tells whether a process has a handler for it.
func catchesSIGCHLD(t *testing.T, pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "SigCgt:")
	var caught uint64
	if _, err := fmt.Sscanf(strings.TrimSpace(rest), "%x", &caught); err != nil {
		t.Fatal(err)
	}
	return caught&(1<<(unix.SIGCHLD-1)) != 0
}
