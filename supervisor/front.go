package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"podstead/supervisor/internal/protocol"
)

// SupervisedEnv is set in the environment of an engine that a supervisor runs,
// to the run directory.
const SupervisedEnv = protocol.SupervisedEnv

// Front replaces the calling program by "podstead-supervisor run", which runs
// it again as the supervised engine with the same arguments and environment;
// it returns only if that fails. In the engine itself, that is if
// SupervisedEnv is set, it returns nil at once:
//
//	if err := supervisor.Front(runDir, os.Args); err != nil { … }
//	// here runs the engine
func Front(runDir string, args []string) error {
	if os.Getenv(SupervisedEnv) != "" {
		return nil
	}
	path, err := Command()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own executable: %w", err)
	}
	argv := append([]string{command, "run", "--run", runDir, "--", self}, args[1:]...)
	return &os.PathError{Op: "exec", Path: path, Err: syscall.Exec(path, argv, os.Environ())}
}

// Engine describes the engine that RunEngine runs.
type Engine struct {
	Argv, Env      []string // Argv[0] is a path
	Dir            string
	Stdout, Stderr *os.File
	// Grace is how long a stopped engine has between SIGTERM and SIGKILL.
	Grace time.Duration
	// Running, if not nil, is called with the engine's process ID whenever it
	// runs, or runs again.
	Running func(pid int)
}

// ErrBusy says that another front runs the engine.
var ErrBusy = protocol.ErrBusy

// RunEngine starts a supervisor if none runs, and has it run the engine and
// restart it when it dies. When ctx ends it stops the engine, containers go
// on; it returns the engine's exit code. An engine whose front was killed is
// taken over as it runs; if its front lives, that is ErrBusy. Should the
// supervisor die, RunEngine starts another, which finds the engine.
func RunEngine(ctx context.Context, runDir string, e Engine) (code int, err error) {
	for {
		w, err := ensure(context.WithoutCancel(ctx), runDir)
		if err != nil {
			return 1, err
		}
		code, err := runEngine(ctx, w, e)
		w.close()
		if !errors.Is(err, ErrDisconnected) {
			return code, err
		}
	}
}

func runEngine(ctx context.Context, w *wire, e Engine) (int, error) {
	req := &protocol.EngineRequest{Argv: e.Argv, Env: e.Env, Dir: e.Dir, Adopt: true}
	call, err := w.begin(protocol.RunEngine, req, []*os.File{e.Stdout, e.Stderr})
	if err != nil {
		return 1, err
	}
	defer call.end()
	stop := context.AfterFunc(ctx, func() {
		n := &protocol.Number{N: e.Grace.Milliseconds()}
		w.ask(context.WithoutCancel(ctx), protocol.StopEngine, n, nil, nil)
	})
	defer stop()
	for {
		p, err := call.next(context.WithoutCancel(ctx))
		if err != nil {
			return 1, err
		}
		var n protocol.Number
		if _, err := open(p, &n); err != nil {
			return 1, err
		}
		if p.Op != protocol.Event {
			return int(n.N), nil
		}
		if e.Running != nil {
			e.Running(int(n.N))
		}
	}
}

// Upgrade replaces the program of a running supervisor in place: same process,
// same children, no output lost. executable is the new program, or empty for
// the file that the supervisor was started from, as it is now.
func (c *Client) Upgrade(ctx context.Context, executable string) error {
	_, err := c.ask(ctx, protocol.Upgrade, &protocol.Name{Name: executable}, nil)
	return err
}
