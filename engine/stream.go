package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"podstead/cri"
	"podstead/engine/internal/session"
	"podstead/oci/launch"
	"podstead/supervisor"
)

// streams is the HTTP server of exec, attach and port-forward. Its tokens are
// valid once, for a minute, and end with the engine; its listener belongs to
// the supervisor, so that the address stays.
type streams struct {
	streaming.Server
	http     *http.Server
	listener net.Listener
	serving  chan struct{}
}

func (e *Engine) serveStreams(ctx context.Context) (*streams, error) {
	wanted := e.settings.Load().Streams
	l, err := e.cfg.Supervisor.Listen(ctx, "stream "+wanted.Address, "tcp", wanted.Address)
	if err != nil {
		return nil, fmt.Errorf("listen for streams on %s: %w", wanted.Address, err)
	}
	config := streaming.DefaultConfig
	config.StreamIdleTimeout = wanted.IdleTimeout.Duration
	config.StreamCreationTimeout = wanted.CreationTimeout.Duration
	config.Addr = l.Addr().String()
	config.BaseURL = &url.URL{Scheme: "http", Host: l.Addr().String()}
	server, err := streaming.NewServer(config, (*streamRuntime)(e))
	if err != nil {
		l.Close()
		return nil, err
	}
	s := &streams{
		Server: server, listener: l, serving: make(chan struct{}),
		http: &http.Server{
			ReadHeaderTimeout: 10 * time.Second,
			BaseContext:       func(net.Listener) context.Context { return e.life },
		},
	}
	(&closing{Handler: server, after: streamLinger}).install(s.http)
	go func() {
		defer close(s.serving)
		if err := s.http.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			e.log.Error("streams are not served any more", "error", err)
		}
	}()
	return s, nil
}

// close ends the server. Streams under way end by themselves, since their
// context has.
func (s *streams) close() error {
	err := s.http.Close()
	<-s.serving
	return err
}

// Exec returns a URL at which a command runs with the client's streams.
func (e *Engine) Exec(_ context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	if err := e.checkRunning(&req.ContainerId); err != nil {
		return nil, err
	}
	return e.streams.GetExec(req)
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
	return e.streams.GetAttach(req)
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
	return e.streams.GetPortForward(req)
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

var _ streaming.Runtime = (*streamRuntime)(nil)

// Exec runs a command with the client's streams until it ends.
func (r *streamRuntime) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	e := (*Engine)(r)
	c, err := e.mustContainer(id)
	if err != nil {
		return err
	}
	ctx, cancel := session.Until(ctx, e.life)
	defer cancel()
	p := &plumbing{}
	defer p.close()
	var stdio launch.Stdio
	if !tty {
		stdio = launch.Stdio{Stdin: p.source(in), Stdout: p.sink(out), Stderr: p.sink(errOut)}
		if p.err != nil {
			return p.err
		}
	}
	x, err := e.exec(ctx, c, cmd, tty, stdio)
	if err != nil {
		return err
	}
	defer x.end()
	p.handOver()
	var stopResize func()
	if tty {
		p.terminal(x.console, in, out)
		stopResize = session.Follow(resize, func(s remotecommand.TerminalSize) { resizeConsole(x.console, s) })
		defer stopResize()
	}
	code, err := x.wait(ctx)
	if err != nil {
		return err
	}
	p.drain()
	if code != 0 {
		// The server knows this type by assertion: it must not be wrapped.
		return &utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return nil
}

// Attach connects the client's streams to the container's first process until
// that ends or the client leaves.
func (r *streamRuntime) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	e := (*Engine)(r)
	c, err := e.mustContainer(id)
	if err != nil {
		return err
	}
	ctx, cancel := session.Until(ctx, e.life)
	defer cancel()
	s := supervisor.Streams{Stdin: in}
	if out != nil {
		defer out.Close()
		s.Stdout = out
	}
	if errOut != nil {
		defer errOut.Close()
		s.Stderr = errOut
	}
	if tty {
		stop := session.Follow(resize, func(size remotecommand.TerminalSize) {
			e.cfg.Supervisor.Resize(ctx, c.id, size.Width, size.Height)
		})
		defer stop()
	}
	err = e.cfg.Supervisor.Attach(ctx, c.id, s)
	if errors.Is(err, context.Canceled) && e.life.Err() == nil {
		return nil // the client left
	}
	return err
}

func resizeConsole(console *os.File, s remotecommand.TerminalSize) {
	conn, err := console.SyscallConn()
	if err != nil {
		return
	}
	conn.Control(func(fd uintptr) {
		unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Height, Col: s.Width})
	})
}
