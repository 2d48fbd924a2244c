// Package forward connects a stream to a port on a pod's loopback. It keeps
// nothing, and asks for no process inside the pod.
package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"podstead/sys"
)

// dialTimeout bounds a connection to a port of the pod, which is local.
const dialTimeout = 10 * time.Second

// halfClosedTimeout is how long a server may stay silent after its client has
// sent all it will.
const halfClosedTimeout = 2 * time.Minute

// Port relays stream to localhost in a network namespace, "" for the host's,
// until the server has sent all or ctx ends.
func Port(ctx context.Context, netns string, port int32, stream io.ReadWriteCloser) error {
	conn, err := dial(netns, port)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	return relay(stream, conn)
}

// dial connects to localhost in a network namespace. An address, not a name, is
// dialled: Go connects to it on the calling thread.
func dial(netns string, port int32) (conn *net.TCPConn, err error) {
	try := func() error {
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
		return conn, try()
	}
	err = sys.InNetNamespace(netns, try)
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
