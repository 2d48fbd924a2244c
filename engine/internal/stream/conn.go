package stream

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// listener makes every connection one of ours.
type listener struct {
	net.Listener
	s *Server
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		n, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := l.s.newConn(n); c != nil {
			return c, nil
		}
	}
}

// conn is a client's connection. It knows whether the client is there, does not
// wait for ever for one that does not read, and ends in a way that the client
// gets what was written: closing a connection with unread input would reset it,
// and what the other side has not read yet might be lost.
type conn struct {
	net.Conn
	s        *Server
	idle     time.Duration
	upgraded atomic.Bool // it belongs to a stream, not to the HTTP server
	broken   atomic.Bool // a write has failed
	// present ends when the client has gone or the connection was closed.
	present context.Context
	leave   context.CancelFunc
	close   sync.Once
}

type connKey struct{}

// newConn is nil if the server is closed.
func (s *Server) newConn(n net.Conn) *conn {
	c := &conn{Conn: n, s: s, idle: s.timeouts.Load().Idle}
	c.present, c.leave = context.WithCancel(context.Background())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		n.Close()
		return nil
	}
	s.conns[c] = true
	return c
}

// whilePresent returns a request's context, which ends with the client, too.
func whilePresent(r *http.Request) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(r.Context())
	stop := context.AfterFunc(r.Context().Value(connKey{}).(*conn).present, cancel)
	return ctx, func() { stop(); cancel() }
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.leave()
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	c.Conn.SetWriteDeadline(time.Now().Add(c.idle))
	n, err := c.Conn.Write(b)
	if err != nil {
		c.broken.Store(true)
		c.leave()
	}
	return n, err
}

// Close closes a stream's connection for writing, and then, while nobody waits
// for it, altogether.
func (c *conn) Close() error {
	var err error
	c.close.Do(func() {
		c.leave()
		half, ok := c.Conn.(interface{ CloseWrite() error })
		if !ok || !c.upgraded.Load() || half.CloseWrite() != nil || !c.s.begin() {
			err = c.abort()
			return
		}
		go func() {
			defer c.s.work.Done()
			c.Conn.SetReadDeadline(time.Now().Add(linger))
			io.Copy(io.Discard, c.Conn)
			c.abort()
		}()
	})
	return err
}

// abort closes the connection at once.
func (c *conn) abort() error {
	c.leave()
	c.s.mu.Lock()
	delete(c.s.conns, c)
	c.s.mu.Unlock()
	return c.Conn.Close()
}
