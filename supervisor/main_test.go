package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podstead/oci/launch"
	"podstead/supervisor/daemon"
)

// TestMain makes the test binary a supervisor too, whose launch programs are
// command lines: what is tested here is the supervisor, not the launch.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "daemon" {
		os.Exit(runDaemon(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "holder" {
		os.Exit(runHolder(os.Args[2]))
	}
	if len(os.Args) > 1 && os.Args[1] == "connect" {
		if _, err := Connect(context.Background(), os.Args[2]); errors.Is(err, ErrDisconnected) {
			fmt.Println("refused")
		} else {
			fmt.Println("not refused:", err)
		}
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == "writer" {
		os.Exit(runWriter(os.Args[2], os.Args[3]))
	}
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Setenv(CommandEnv, self)
	code := m.Run()
	if path, err := built(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

func runDaemon(args []string) int {
	cfg := daemon.Config{RunDir: args[1], Fork: forker{}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), State: -1}
	if len(args) > 3 && args[2] == "--state" {
		cfg.State, _ = strconv.Atoi(args[3])
	}
	if slices.Contains(args, "--check") {
		if err := daemon.CheckState(cfg.State); err != nil {
			return 1
		}
		return 0
	}
	if err := daemon.Run(cfg); err != nil && err != daemon.ErrRunning {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// runHolder is an engine that is connected and does nothing.
func runHolder(dir string) int {
	c, err := Ensure(context.Background(), dir)
	if err != nil {
		return 1
	}
	if _, err := c.Events(context.Background()); err != nil {
		return 1
	}
	fmt.Println("ready")
	select {}
}

// runWriter is a container that writes 64 KiB of lines n times.
func runWriter(line, n string) int {
	length, _ := strconv.Atoi(line)
	times, _ := strconv.Atoi(n)
	data := bytes.Repeat([]byte(strings.Repeat("x", length-1)+"\n"), 1+(64<<10)/length)[:64<<10]
	for range times {
		if _, err := os.Stdout.Write(data); err != nil {
			return 1
		}
	}
	return 0
}

// argv is a launch program of the tests.
func argv(words ...string) []byte { return []byte(strings.Join(words, "\x00")) }

func sh(script string) []byte { return argv("/bin/sh", "-c", script) }

type commandChild struct{ control *os.File }

func (c commandChild) Start(func(*launch.Child, launch.Point) error) error {
	defer c.control.Close()
	_, err := c.control.Write([]byte("\n"))
	return err
}

func (c commandChild) Abandon() error { return c.control.Close() }

type forker struct{}

func (forker) Adopt(program []byte, f *daemon.Forked) (daemon.Child, error) {
	return commandChild{f.Control}, nil
}

// Fork forks a shell that waits for its start, or was started. The terminal is
// made by the program's first word being "tty".
func (forker) Fork(program []byte, files []*os.File, opt launch.ForkOptions) (*daemon.Forked, error) {
	args := strings.Split(string(program), "\x00")
	if args[0] == "fail" {
		return nil, fmt.Errorf("step 3: %s: %w", args[1], syscall.ENOSPC)
	}
	if args[0] == "wait" {
		f, err := os.Open(args[1])
		if err != nil {
			return nil, err
		}
		f.Close()
		args = args[2:]
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	w.Fd() // blocking
	f := &daemon.Forked{Child: commandChild{w}, Control: w}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	attr := &syscall.SysProcAttr{}
	std := []*os.File{opt.Stdio.Stdin, opt.Stdio.Stdout, opt.Stdio.Stderr}
	if args[0] == "tty" {
		args = args[1:]
		master, slave, err := openPty()
		if err != nil {
			return nil, err
		}
		defer slave.Close()
		f.Console = master
		std = []*os.File{slave, slave, slave}
		attr.Setsid, attr.Setctty = true, true
	}
	fds := []uintptr{}
	for _, s := range std {
		if s == nil {
			s = null
		}
		fds = append(fds, s.Fd())
	}
	fds = append(fds, r.Fd())
	pidfd := -1
	attr.PidFD = &pidfd
	full := append([]string{"sh", "-c", `read x <&3 || exit 99; exec 3<&-; exec "$@"`, "sh"}, args...)
	pid, err := syscall.ForkExec("/bin/sh", full, &syscall.ProcAttr{Files: fds, Env: os.Environ(), Sys: attr})
	if err != nil {
		return nil, err
	}
	f.Pid, f.Pidfd = pid, os.NewFile(uintptr(pidfd), "pidfd")
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	f.StartTicks, _ = strconv.ParseUint(string(fields[19]), 10, 64)
	if opt.Start {
		err = f.Child.Start(nil)
		f.Child, f.Control = nil, nil
	}
	return f, err
}

func openPty() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	return master, slave, err
}

// bound is how long a test waits for what must happen; an emulated machine is
// slow.
const bound = 3 * time.Minute

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	t.Cleanup(cancel)
	return ctx
}

// fixture is a supervisor of a test's own.
type fixture struct {
	*testing.T
	ctx context.Context
	dir string
	*Client
}

func start(t *testing.T) *fixture {
	t.Helper()
	t.Parallel()
	f := &fixture{T: t, ctx: testContext(t), dir: t.TempDir()}
	f.Client = f.connect()
	t.Cleanup(f.finish)
	return f
}

func (f *fixture) connect() *Client {
	f.Helper()
	c, err := Ensure(f.ctx, f.dir)
	if err != nil {
		f.Fatal(err)
	}
	return c
}

// finish ends what runs, and demands that the supervisor ends by itself then
// and leaves nothing behind.
func (f *fixture) finish() {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	c, err := Ensure(ctx, f.dir)
	if err != nil {
		f.Error(err)
		return
	}
	f.Client.Close()
	pid := c.daemonPid()
	ps, err := c.List(ctx)
	if err != nil {
		f.Error(err)
	}
	for _, p := range ps {
		c.Signal(ctx, p.ID, 9)
		for p.State != Exited {
			p, err = c.Get(ctx, p.ID)
			if err != nil {
				f.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		if err := c.Forget(ctx, p.ID); err != nil {
			f.Error(err)
		}
	}
	c.Drop(ctx, "kept")
	c.Close()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		defer unix.Close(pidfd)
		n, err := 0, error(unix.EINTR)
		for err == unix.EINTR {
			n, err = unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(bound/time.Millisecond))
		}
		if n != 1 {
			f.Errorf("the supervisor does not end: %v", err)
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	names, _ := filepath.Glob(f.dir + "/supervisor*")
	for _, n := range names {
		if base := filepath.Base(n); base != "supervisor.lock" && base != "supervisor.log" {
			f.Errorf("left behind: %s", n)
		}
	}
	if log, _ := os.ReadFile(daemonLog(f.dir)); f.Failed() {
		f.Logf("supervisor: %s", log)
	}
}

// daemonPid is the supervisor's process ID.
func (c *Client) daemonPid() int {
	w, err := c.connected(context.Background())
	if err != nil {
		return 0
	}
	return w.pid
}

// run launches and starts a logged process.
func (f *fixture) run(id string, program []byte, more ...func(*Launch)) Process {
	f.Helper()
	l := Launch{ID: id, Log: LogFile{Path: f.log(id)}, Start: true}
	for _, m := range more {
		m(&l)
	}
	p, _, err := f.launch(f.ctx, l, program, bytes.HasPrefix(program, []byte("tty\x00")))
	if err != nil {
		f.Fatal(err)
	}
	return p
}

func (f *fixture) log(id string) string { return filepath.Join(f.dir, id+".log") }

// ended waits until a process has exited.
func (f *fixture) ended(id string) Process {
	f.Helper()
	events, err := f.Events(f.ctx)
	if err != nil {
		f.Fatal(err)
	}
	p, err := f.Get(f.ctx, id)
	if err != nil {
		f.Fatal(err)
	}
	for p.State != Exited {
		e, ok := <-events
		if !ok {
			f.Fatalf("no event of %s", id)
		}
		if e.Process.ID == id {
			p = e.Process
		}
	}
	return p
}

// logged returns a process's output of one stream, as a log reader sees it.
func (f *fixture) logged(id, stream string) string {
	f.Helper()
	return f.loggedIn(f.log(id), stream)
}

func (f *fixture) loggedIn(path, stream string) string {
	f.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		if !strings.HasSuffix(line, "\n") {
			break // a write that crosses a page shows its first part earlier
		}
		parts := strings.SplitN(line, " ", 4)
		if len(parts) != 4 {
			f.Fatalf("not a record: %.100q", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, parts[0]); err != nil {
			f.Fatal(err)
		}
		if parts[1] != stream {
			continue
		}
		text := parts[3]
		if parts[2] == "P" {
			text = strings.TrimSuffix(text, "\n")
		}
		out.WriteString(text)
	}
	return out.String()
}

// eventually waits for a condition that nothing tells about.
func (f *fixture) eventually(what string, ok func() bool) {
	f.Helper()
	for !ok() {
		if f.ctx.Err() != nil {
			f.Fatalf("never: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
