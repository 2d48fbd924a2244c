package engine

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/config"
	"podstead/engine/internal/stream"
	"podstead/oci/launch"
	"podstead/supervisor"
)

// serveStreams serves exec, attach and port-forward. The listener belongs to the
// supervisor, so that the address stays.
func (e *Engine) serveStreams(ctx context.Context) (*stream.Server, error) {
	wanted := e.settings.Load().Streams
	l, err := e.cfg.Supervisor.Listen(ctx, "stream "+wanted.Address, "tcp", wanted.Address)
	if err != nil {
		return nil, fmt.Errorf("listen for streams on %s: %w", wanted.Address, err)
	}
	return stream.Serve(l, timeouts(wanted), (*streamRuntime)(e), e.log), nil
}

func timeouts(c config.Streams) stream.Timeouts {
	return stream.Timeouts{Idle: c.IdleTimeout.Duration, Creation: c.CreationTimeout.Duration}
}

// Exec returns a URL at which a command runs with the client's streams.
func (e *Engine) Exec(_ context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	if err := e.checkRunning(&req.ContainerId); err != nil {
		return nil, err
	}
	return e.streams.Exec(req)
}

// Attach returns a URL at which the streams of the container's first process
// are.
func (e *Engine) Attach(_ context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	if err := e.checkRunning(&req.ContainerId); err != nil {
		return nil, err
	}
	return e.streams.Attach(req)
}

// PortForward returns a URL at which connections to the pod's ports are made.
func (e *Engine) PortForward(_ context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	s, err := e.mustSandbox(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	if p := s.record().Phase; p != sandboxReady {
		return nil, cri.Errorf(codes.FailedPrecondition, "pod sandbox %s is not ready (%s)", s.id, p)
	}
	return e.streams.PortForward(req)
}

func (e *Engine) checkRunning(id *string) error {
	c, err := e.mustContainer(*id)
	if err != nil {
		return err
	}
	if rec := c.record(); rec.Phase != containerRunning {
		return cri.Errorf(codes.FailedPrecondition, "container %s is %s, not running", c.id, rec.Phase)
	}
	return nil
}

// streamRuntime does the work behind the URLs.
type streamRuntime Engine

var _ stream.Runtime = (*streamRuntime)(nil)

// Exec runs a command with the client's streams until it ends.
func (r *streamRuntime) Exec(ctx context.Context, id string, cmd []string, s stream.Streams) (int, error) {
	e := (*Engine)(r)
	c, err := e.mustContainer(id)
	if err != nil {
		return 0, err
	}
	p := &plumbing{}
	defer p.close()
	var stdio launch.Stdio
	if !s.TTY {
		stdio = launch.Stdio{Stdin: p.source(s.In), Stdout: p.sink(s.Out), Stderr: p.sink(s.Err)}
		if p.err != nil {
			return 0, p.err
		}
	}
	x, err := e.exec(ctx, c, cmd, s.TTY, stdio)
	if err != nil {
		return 0, err
	}
	defer x.end()
	p.handOver()
	if s.TTY {
		p.terminal(x.console, s.In, s.Out)
		defer hangUp(s.Gone, x.console)()
		defer s.Resize(func(size stream.Size) { resizeConsole(x.console, size) })()
	}
	code, err := x.wait(ctx)
	if err != nil {
		return 0, err
	}
	p.drain()
	return code, nil
}

// Attach connects the client's streams to the container's first process until
// that ends or the client leaves.
func (r *streamRuntime) Attach(ctx context.Context, id string, s stream.Streams) error {
	e := (*Engine)(r)
	c, err := e.mustContainer(id)
	if err != nil {
		return err
	}
	to := supervisor.Streams{Stdin: s.In}
	if s.Out != nil {
		defer s.Out.Close()
		to.Stdout = s.Out
	}
	if s.Err != nil {
		defer s.Err.Close()
		to.Stderr = s.Err
	}
	defer s.Resize(func(size stream.Size) {
		e.cfg.Supervisor.Resize(ctx, c.id, size.Width, size.Height)
	})()
	err = e.cfg.Supervisor.Attach(ctx, c.id, to)
	if errors.Is(err, context.Canceled) && e.life.Err() == nil {
		return nil // the client left
	}
	return err
}

// hangUp takes a terminal away from its processes, which get SIGHUP, when the
// client leaves before the returned function is called.
func hangUp(gone <-chan struct{}, console *os.File) (stop func()) {
	over := make(chan struct{})
	go func() {
		select {
		case <-gone:
			console.Close()
		case <-over:
		}
	}()
	return func() { close(over) }
}

func resizeConsole(console *os.File, s stream.Size) {
	conn, err := console.SyscallConn()
	if err != nil {
		return
	}
	conn.Control(func(fd uintptr) {
		unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Height, Col: s.Width})
	})
}
