package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"podstead/cri"
	"podstead/engine/handler"
	"podstead/oci/launch"
	"podstead/supervisor"
	"podstead/sys"
)

// execution is a process that was launched in a container beside its first.
type execution struct {
	e       *Engine
	c       *container
	id      string
	process supervisor.Process
	console *os.File // pty master, if it has one
	exited  <-chan supervisor.Process
}

// exec runs a command in a running container. end must be called.
func (e *Engine) exec(ctx context.Context, c *container, cmd []string, tty bool, stdio launch.Stdio) (*execution, error) {
	rec := c.record()
	if rec.Phase != containerRunning {
		return nil, cri.Errorf(codes.FailedPrecondition, "container %s is %s, not running", c.id, rec.Phase)
	}
	if slices.ContainsFunc(cmd, func(s string) bool { return strings.ContainsRune(s, 0) }) {
		return nil, cri.Errorf(codes.InvalidArgument, "cmd has a NUL byte")
	}
	h, err := e.handlerOf(rec.Runtime)
	if err != nil {
		return nil, err
	}
	s, err := e.specification(c)
	if err != nil {
		return nil, err
	}
	g := e.cfg.Cgroups.Group(rec.Cgroup)
	x := &execution{e: e, c: c, id: c.id + "/" + newID()[:16]}
	return x, x.launch(ctx, h, handler.Exec{
		ID: x.id, Spec: s, Bundle: e.containerRecords.Path(c.id), PodDir: e.sandboxRecords.Path(rec.SandboxID), Process: execProcess(s.Process, cmd, tty), Pid: rec.Pid, StartTicks: rec.StartTicks,
		CgroupJoin: g.JoinFiles(), CgroupDir: g.Dir(), Stdio: stdio, Last: &c.execs,
	})
}

// execTimeout bounds a launch whose caller may have left.
const execTimeout = 2 * time.Minute

// launch begins the process. If the caller leaves meanwhile, the process is
// ended as soon as it is there.
func (x *execution) launch(ctx context.Context, h handler.Handler, p handler.Exec) error {
	// Copies, since a caller that leaves closes its own.
	stdio, err := copyStdio(p.Stdio)
	if err != nil {
		return err
	}
	p.Stdio = stdio
	x.exited = x.e.exits.expect(x.id)
	begun := make(chan error, 1)
	x.e.worker.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), execTimeout)
		defer cancel()
		err := x.begin(ctx, h, p)
		closeStdio(stdio)
		begun <- err
	})
	select {
	case err := <-begun:
		return err
	case <-ctx.Done():
		x.e.worker.Go(func() {
			if err := <-begun; err == nil {
				x.end()
			}
		})
		return status.FromContextError(ctx.Err()).Err()
	}
}

func copyStdio(s launch.Stdio) (out launch.Stdio, err error) {
	for _, f := range []struct{ from, to **os.File }{
		{&s.Stdin, &out.Stdin}, {&s.Stdout, &out.Stdout}, {&s.Stderr, &out.Stderr},
	} {
		if *f.from == nil {
			continue
		}
		if *f.to, err = sys.Dup(*f.from); err != nil {
			closeStdio(out)
			return launch.Stdio{}, err
		}
	}
	return out, nil
}

func closeStdio(s launch.Stdio) { sys.CloseAll([]*os.File{s.Stdin, s.Stdout, s.Stderr}) }

func (x *execution) begin(ctx context.Context, h handler.Handler, p handler.Exec) (err error) {
	e, c := x.e, x.c
	x.process, x.console, err = h.Exec(ctx, p)
	if err != nil {
		e.exits.forget(x.id)
		if errors.Is(err, os.ErrProcessDone) {
			return cri.Errorf(codes.FailedPrecondition, "container %s has just ended: %v", c.id, err)
		}
		return fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	if x.process.State != supervisor.Exited {
		e.exits.launched(x.id)
	}
	if x.console == nil {
		return nil
	}
	if x.console, err = interruptible(x.console); err != nil {
		return errors.Join(err, x.close())
	}
	return nil
}

// execProcess is the container's own process with another command.
func execProcess(of *specs.Process, cmd []string, tty bool) *specs.Process {
	p := *of
	p.Args, p.Terminal, p.ConsoleSize = slices.Clone(cmd), tty, nil
	if tty && !slices.ContainsFunc(p.Env, func(kv string) bool { return strings.HasPrefix(kv, "TERM=") }) {
		p.Env = append(slices.Clone(p.Env), "TERM=xterm")
	}
	return &p
}

// wait returns the exit code of the process.
func (x *execution) wait(ctx context.Context) (int, error) {
	if x.process.State == supervisor.Exited { // before its launch was answered
		return x.code()
	}
	select {
	case p := <-x.exited:
		x.process = p
		return x.code()
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-x.e.life.Done():
		return 0, cri.Errorf(codes.Unavailable, "the engine is stopping")
	}
}

func (x *execution) code() (int, error) {
	if x.process.ExitCode < 0 {
		return 0, cri.Errorf(codes.Unavailable, "how the command in container %s ended is lost, with the supervisor that knew it", x.c.id)
	}
	return x.process.ExitCode, nil
}

// reapTimeout bounds how long killed processes of an exec are waited for.
const reapTimeout = 10 * time.Second

// end is close for who has nobody to tell.
func (x *execution) end() {
	if err := x.close(); err != nil {
		x.e.log.Warn("an exec'd process is left", "container", x.c.id, "error", err)
	}
}

// close ends the process, if it still runs, and all that it started, and drops
// it at the supervisor.
func (x *execution) close() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(x.e.life), reapTimeout)
	defer cancel()
	defer x.e.exits.forget(x.id)
	if x.console != nil {
		x.console.Close()
	}
	if x.process.State == supervisor.Exited {
		return nil
	}
	err := x.kill(ctx)
	return errors.Join(err, x.e.forgetProcess(ctx, x.id))
}
