package engine

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// streamLinger is how long a connection may stay open after its stream has ended:
// long enough for the last bytes to arrive.
const streamLinger = 10 * time.Second

// closing closes the connections that its handler takes over from the HTTP
// server some time after the handler is done with them. The stream library
// leaves one open until it was idle for hours if its client makes no streams on
// it. It must serve all requests of the server it is installed in.
type closing struct {
	http.Handler
	after time.Duration
	taken sync.Map // net.Conn
}

// install makes c the handler of s.
func (c *closing) install(s *http.Server) {
	s.Handler = c
	s.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, conn)
	}
	s.ConnState = func(conn net.Conn, state http.ConnState) {
		if state == http.StateHijacked {
			c.taken.Store(conn, true)
		}
	}
}

type connKey struct{}

func (c *closing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.Handler.ServeHTTP(w, r)
	conn := r.Context().Value(connKey{})
	if _, taken := c.taken.LoadAndDelete(conn); taken {
		time.AfterFunc(c.after, func() { conn.(net.Conn).Close() })
	}
}
