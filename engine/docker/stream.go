package docker

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/moby/moby/client"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/internal/forward"
	"podstead/engine/internal/stream"
)

// How long streams may be idle, and clients take to make them.
const (
	streamIdleTimeout     = 4 * time.Hour
	streamCreationTimeout = 30 * time.Second
)

func (r *Runtime) serveStreams() (*stream.Server, error) {
	l, err := net.Listen("tcp", r.cfg.StreamAddress)
	if err != nil {
		return nil, fmt.Errorf("listen for streams on %s: %w", r.cfg.StreamAddress, err)
	}
	timeouts := stream.Timeouts{Idle: streamIdleTimeout, Creation: streamCreationTimeout}
	return stream.Serve(l, timeouts, (*streamRuntime)(r), r.log), nil
}

// Exec returns a URL at which a command runs with the client's streams.
func (r *Runtime) Exec(ctx context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	if _, err := r.running(ctx, req.ContainerId); err != nil {
		return nil, err
	}
	return r.streams.Exec(req)
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
	return r.streams.Attach(req)
}

// PortForward returns a URL at which connections to the pod's ports are made.
func (r *Runtime) PortForward(ctx context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	if _, err := r.readyPod(ctx, req.PodSandboxId); err != nil {
		return nil, err
	}
	return r.streams.PortForward(req)
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
func (r *Runtime) readyPod(ctx context.Context, id string) (*sandbox, error) {
	p, err := r.mustPod(ctx, id)
	if err == nil && !r.ready(p) {
		err = cri.Errorf(codes.FailedPrecondition, "pod sandbox %s is not ready", p.id)
	}
	return p, err
}

// streamRuntime does the work behind the URLs.
type streamRuntime Runtime

var _ stream.Runtime = (*streamRuntime)(nil)

// Exec runs a command with the client's streams until it ends.
func (s *streamRuntime) Exec(ctx context.Context, id string, cmd []string, streams stream.Streams) (int, error) {
	r := (*Runtime)(s)
	c, err := r.running(ctx, id)
	if err != nil {
		return 0, err
	}
	x := executionOf(streams)
	x.cmd = cmd
	return r.exec(ctx, c, x)
}

// executionOf keeps streams nil that are.
func executionOf(s stream.Streams) execution {
	x := execution{in: s.In, tty: s.TTY, resize: s.Resize}
	if s.Out != nil {
		x.out = s.Out
	}
	if s.Err != nil {
		x.errOut = s.Err
	}
	return x
}

// Attach connects the client's streams to the container's first process until
// that ends or the client leaves.
func (s *streamRuntime) Attach(ctx context.Context, id string, streams stream.Streams) error {
	r := (*Runtime)(s)
	c, err := r.running(ctx, id)
	if err != nil {
		return err
	}
	conn, err := r.api().ContainerAttach(ctx, c.id, client.ContainerAttachOptions{
		Stream: true, Stdin: streams.In != nil, Stdout: streams.Out != nil, Stderr: streams.Err != nil, DetachKeys: detachKeys,
	})
	if err != nil {
		return failed(err, "attach to container %s", c.id)
	}
	defer conn.Close()
	defer streams.Resize(func(size stream.Size) {
		r.api().ContainerResize(ctx, c.id, client.ContainerResizeOptions{Height: uint(size.Height), Width: uint(size.Width)})
	})()
	p := connect(conn.HijackedResponse, executionOf(streams))
	select {
	case <-p.done:
	case <-ctx.Done():
		conn.Close()
		<-p.done
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
	if err := forward.Port(ctx, p.netns(), port, stream); err != nil {
		return fmt.Errorf("forward port %d of pod sandbox %s: %w", port, p.id, err)
	}
	return nil
}
