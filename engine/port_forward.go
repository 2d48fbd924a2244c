package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"podstead/cri"
	"podstead/sys"
)

// dialTimeout bounds a connection to a port of the pod, which is local.
const dialTimeout = 10 * time.Second

// halfClosedTimeout is how long a server may stay silent after its client has
// sent all it will.
const halfClosedTimeout = 2 * time.Minute

// PortForward connects a stream to a port on the pod's loopback.
func (r *streamRuntime) PortForward(ctx context.Context, sandboxID string, port int32, stream io.ReadWriteCloser) error {
	e := (*Engine)(r)
	defer stream.Close()
	s, err := e.mustSandbox(sandboxID)
	if err != nil {
		return err
	}
	rec := s.record()
	if rec.Phase != sandboxReady {
		return cri.Errorf(codes.FailedPrecondition, "pod sandbox %s is not ready", s.id)
	}
	ctx, cancel := e.untilClosed(ctx)
	defer cancel()
	conn, err := dialPod(e.netnsPath(&rec), port)
	if err != nil {
		return fmt.Errorf("forward port %d of pod sandbox %s: %w", port, s.id, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	return relay(stream, conn)
}

// dialPod connects to localhost in a network namespace, "" for the host's. An
// address, not a name, is dialled: Go connects to it on the calling thread.
func dialPod(netns string, port int32) (conn *net.TCPConn, err error) {
	dial := func() error {
		var errs []error
		for _, host := range []string{"127.0.0.1", "::1"} {
			c, err := net.DialTimeout("tcp", net.JoinHostPort(host, strconv.Itoa(int(port))), dialTimeout)
			if err == nil {
				conn = c.(*net.TCPConn)
				return nil
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	if netns == "" {
		return conn, dial()
	}
	err = sys.InNetNamespace(netns, dial)
	return conn, err
}

// relay copies both ways until the server has sent all. When the client has
// sent all, the server is told so and may still answer.
func relay(stream io.ReadWriteCloser, conn *net.TCPConn) error {
	var up sync.WaitGroup
	up.Go(func() {
		io.Copy(conn, stream)
		conn.CloseWrite()
		conn.SetReadDeadline(time.Now().Add(halfClosedTimeout))
	})
	_, err := io.Copy(stream, conn)
	// The stream's close ends the other copy's read.
	stream.Close()
	conn.Close()
	up.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
