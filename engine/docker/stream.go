package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/moby/moby/client"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"podstead/cri"
	"podstead/engine/internal/forward"
	"podstead/engine/internal/session"
)

// streams is the HTTP server of exec, attach and port-forward. Its tokens are
// valid once, for a minute, and end with this process.
type streams struct {
	streaming.Server
	http     *http.Server
	listener net.Listener
	serving  chan struct{}
}

func (r *Runtime) serveStreams() (*streams, error) {
	l, err := net.Listen("tcp", r.cfg.StreamAddress)
	if err != nil {
		return nil, fmt.Errorf("listen for streams on %s: %w", r.cfg.StreamAddress, err)
	}
	config := streaming.DefaultConfig
	config.Addr = l.Addr().String()
	config.BaseURL = &url.URL{Scheme: "http", Host: l.Addr().String()}
	server, err := streaming.NewServer(config, (*streamRuntime)(r))
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	s := &streams{
		Server: server, listener: l, serving: make(chan struct{}),
		http: &http.Server{
			Handler: server, ReadHeaderTimeout: 10 * time.Second,
			BaseContext: func(net.Listener) context.Context { return r.life },
		},
	}
	go func() {
		defer close(s.serving)
		if err := s.http.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			r.log.Error("streams are not served any more", "error", err)
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
func (r *Runtime) Exec(ctx context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	if _, err := r.running(ctx, req.ContainerId); err != nil {
		return nil, err
	}
	return r.streams.GetExec(req)
}

// Attach returns a URL at which the streams of the container's first process
// are.
func (r *Runtime) Attach(ctx context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	if _, err := r.running(ctx, req.ContainerId); err != nil {
		return nil, err
	}
	return r.streams.GetAttach(req)
}

// PortForward returns a URL at which connections to the pod's ports are made.
func (r *Runtime) PortForward(ctx context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	if _, err := r.readyPod(ctx, req.PodSandboxId); err != nil {
		return nil, err
	}
	return r.streams.GetPortForward(req)
}

// running finds a container that must run.
func (r *Runtime) running(ctx context.Context, id string) (*ctr, error) {
	c, err := r.mustCtr(ctx, id)
	if err == nil && !c.state.Running {
		err = cri.Errorf(codes.FailedPrecondition, "container %s is %s, not running", c.id, c.state.Status)
	}
	return c, err
}

// readyPod finds a sandbox that must be ready.
func (r *Runtime) readyPod(ctx context.Context, id string) (*pod, error) {
	p, err := r.mustPod(ctx, id)
	if err == nil && !r.ready(p) {
		err = cri.Errorf(codes.FailedPrecondition, "pod sandbox %s is not ready", p.id)
	}
	return p, err
}

// streamRuntime does the work behind the URLs.
type streamRuntime Runtime

var _ streaming.Runtime = (*streamRuntime)(nil)

// Exec runs a command with the client's streams until it ends.
func (s *streamRuntime) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	r := (*Runtime)(s)
	c, err := r.running(ctx, id)
	if err != nil {
		return err
	}
	ctx, cancel := session.Until(ctx, r.life)
	defer cancel()
	x := execution{cmd: cmd, in: in, tty: tty, resize: resize}
	x.out, x.errOut = writer(out), writer(errOut)
	code, err := r.exec(ctx, c, x)
	if err != nil {
		return err
	}
	if code != 0 {
		// The server knows this type by assertion: it must not be wrapped.
		return &utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return nil
}

// writer keeps a nil stream nil.
func writer(w io.WriteCloser) io.Writer {
	if w == nil {
		return nil
	}
	return w
}

// Attach connects the client's streams to the container's first process until
// that ends or the client leaves.
func (s *streamRuntime) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	r := (*Runtime)(s)
	c, err := r.running(ctx, id)
	if err != nil {
		return err
	}
	ctx, cancel := session.Until(ctx, r.life)
	defer cancel()
	conn, err := r.api().ContainerAttach(ctx, c.id, client.ContainerAttachOptions{
		Stream: true, Stdin: in != nil, Stdout: out != nil, Stderr: errOut != nil, DetachKeys: detachKeys,
	})
	if err != nil {
		return failed(err, "attach to container %s", c.id)
	}
	defer conn.Close()
	if tty {
		stop := session.Follow(resize, func(size remotecommand.TerminalSize) {
			r.api().ContainerResize(ctx, c.id, client.ContainerResizeOptions{Height: uint(size.Height), Width: uint(size.Width)})
		})
		defer stop()
	}
	streams := connect(conn.HijackedResponse, execution{in: in, out: writer(out), errOut: writer(errOut), tty: tty})
	select {
	case <-streams.done:
	case <-ctx.Done():
		conn.Close()
		<-streams.done
	}
	return r.life.Err()
}

// PortForward connects a stream to a port on the pod's loopback.
func (s *streamRuntime) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	r := (*Runtime)(s)
	defer stream.Close()
	p, err := r.readyPod(ctx, id)
	if err != nil {
		return err
	}
	ctx, cancel := session.Until(ctx, r.life)
	defer cancel()
	if err := forward.Port(ctx, p.netns(), port, stream); err != nil {
		return fmt.Errorf("forward port %d of pod sandbox %s: %w", port, p.id, err)
	}
	return nil
}
