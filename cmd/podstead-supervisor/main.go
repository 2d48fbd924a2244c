// Command podstead-supervisor is the parent of every container; see package
// supervisor.
//
//	podstead-supervisor daemon  --run DIR                 the supervisor itself
//	podstead-supervisor run     --run DIR -- COMMAND…     run the engine under it
//	podstead-supervisor upgrade --run DIR [--exe FILE]    replace its program in place
//
// run starts a supervisor if none runs. It stays in the foreground for the
// engine: SIGINT and SIGTERM stop the engine, and run exits with its code,
// while containers go on; SIGHUP is passed on to the engine, which reads its
// configuration again. Killed, run leaves the engine running, and the next run
// takes over. SIGABRT, with which systemd's watchdog says that the engine does not
// answer, ends engine and run at once: the supervisor starts the engine again.
//
// As a systemd unit, run is the main process. The unit needs KillMode=process,
// so that a stop or a restart leaves the supervisor and the containers alone,
// Delegate=yes, and Restart=always.
//
// The daemon also knows these signals: SIGHUP upgrades it to what its file is
// now; SIGTERM and SIGINT stop the engine, and the daemon ends when the last
// container has.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"podstead/supervisor"
	"podstead/supervisor/daemon"
	"podstead/sys"
)

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "podstead-supervisor:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(args []string) (code int, err error) {
	verb := ""
	if len(args) > 0 {
		verb, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet(verb, flag.ContinueOnError)
	runDir := flags.String("run", "/run/podstead", "run `directory`: socket, lock, state")
	exe := flags.String("exe", "", "new program `file`; default: the one it was started from")
	grace := flags.Duration("grace", 30*time.Second, "how long the engine has to stop before SIGKILL")
	state := flags.Int("state", -1, "descriptor of the state of the program before an upgrade")
	self := flags.String("self", "", "the program `file`, if it is executed from elsewhere")
	check := flags.Bool("check", false, "only tell whether the state can be read")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0, nil
	} else if err != nil {
		return 2, err
	}
	dir, err := filepath.Abs(*runDir)
	if err != nil {
		return 1, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	switch verb {
	case "daemon":
		stop() // the daemon has its own way with signals
		if *check {
			return 0, daemon.CheckState(*state)
		}
		return 0, serve(dir, *self, *state)
	case "run":
		return front(ctx, dir, *grace, flags.Args())
	case "upgrade":
		return 0, upgrade(ctx, dir, *exe)
	}
	return 2, fmt.Errorf("usage: podstead-supervisor daemon|run|upgrade --run DIR …, not %q", verb)
}

// serve is the supervisor itself. It keeps little garbage: memory that it maps
// is copied at every fork.
func serve(runDir, self string, state int) error {
	if self == "" {
		var err error
		if self, err = os.Executable(); err != nil {
			return err
		}
		if err := sys.ReadOnlySelf(append(os.Args, "--self", self)); err != nil {
			return err
		}
	}
	debug.SetGCPercent(25)
	err := daemon.Run(daemon.Config{
		RunDir: runDir,
		Exe:    self,
		Fork:   daemon.Programs{},
		Log:    slog.New(slog.NewTextHandler(daemon.LogTo(os.Stderr), nil)),
		State:  state,
	})
	if errors.Is(err, daemon.ErrRunning) {
		return nil // started twice at the same time: the other one serves
	}
	return err
}

func front(ctx context.Context, runDir string, grace time.Duration, argv []string) (int, error) {
	if len(argv) == 0 {
		return 2, errors.New("run: no command after --")
	}
	wd, err := os.Getwd()
	if err != nil {
		return 1, err
	}
	var engine engineSignals
	defer engine.forward()()
	return supervisor.RunEngine(ctx, runDir, supervisor.Engine{
		Argv:    argv,
		Env:     os.Environ(),
		Dir:     wd,
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
		Grace:   grace,
		Running: engine.runs,
	})
}

// engineSignals passes signals on to the engine that runs at the time. The zero
// value is ready.
type engineSignals struct {
	mu    sync.Mutex
	pidfd *os.File // nil: none runs
}

// runs is told of each engine.
func (e *engineSignals) runs(pid int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pidfd.Close() // nil is an error that nobody needs
	e.pidfd = nil
	if fd, err := unix.PidfdOpen(pid, 0); err == nil {
		e.pidfd = os.NewFile(uintptr(fd), "engine")
	}
}

// forward begins; the returned function ends it.
func (e *engineSignals) forward() (stop func()) {
	signals, quit := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGABRT)
	go func() {
		for {
			select {
			case <-quit:
				return
			case s := <-signals:
				e.send(s.(syscall.Signal))
			}
		}
	}()
	return func() { signal.Stop(signals); close(quit) }
}

func (e *engineSignals) send(s syscall.Signal) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pidfd != nil {
		unix.PidfdSendSignal(int(e.pidfd.Fd()), s, nil, 0)
	}
	if s != syscall.SIGABRT {
		return
	}
	// An engine that can, writes its goroutines and ends.
	if e.pidfd != nil {
		unix.Poll([]unix.PollFd{{Fd: int32(e.pidfd.Fd()), Events: unix.POLLIN}}, 2000)
		unix.PidfdSendSignal(int(e.pidfd.Fd()), unix.SIGKILL, nil, 0)
	}
	fmt.Fprintln(os.Stderr, "podstead-supervisor: the engine does not answer and is started again")
	os.Exit(128 + int(s))
}

func upgrade(ctx context.Context, runDir, exe string) error {
	c, err := supervisor.Connect(ctx, runDir)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Upgrade(ctx, exe)
}
