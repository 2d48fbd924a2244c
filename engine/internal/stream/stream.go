// Package stream is the HTTP server of exec, attach and port-forward: it gives
// out URLs, and has a Runtime do the work when a client comes, over SPDY or
// WebSockets. The framing of both is k8s.io/streaming's; what is here is who may
// connect, which streams there are, and how everything ends.
//
// A URL is good once and for a minute. A connection has the streams that were
// asked for and no others: a client that makes more is cut off. When a client
// has gone, or does not read for Timeouts.Idle, its connection ends, and so do
// attach and port-forward; what becomes of an exec'd command is up to the Runtime.
// When a stream's work has ended the connection is closed for writing, and for
// good when the client has closed it, too, or after linger.
//
// The package is called by the runtimes of engine and engine/docker. Nothing of
// it survives the process.
package stream

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Runtime does the work behind the URLs.
type Runtime interface {
	// Exec runs a command until it has ended, and returns its exit code. ctx
	// ends with the server, not with the client.
	Exec(ctx context.Context, container string, cmd []string, s Streams) (code int, err error)
	// Attach connects a container's first process until that has ended. Here and
	// in PortForward, ctx ends with the client, too.
	Attach(ctx context.Context, container string, s Streams) error
	// PortForward connects to a port of a pod.
	PortForward(ctx context.Context, sandbox string, port int32, conn io.ReadWriteCloser) error
}

// Streams are a client's. What it did not ask for is nil.
type Streams struct {
	In       io.Reader
	Out, Err io.WriteCloser
	TTY      bool
	Gone     <-chan struct{} // closed when the client has left
	sizes    io.Reader       // JSON, one Size after the other
}

// Timeouts of a server.
type Timeouts struct {
	Idle     time.Duration // of a connection on which nothing happens
	Creation time.Duration // how long a client may take to make its streams
}

// linger is how long a client may take to close a connection that is over.
const linger = 10 * time.Second

// Server serves until it is closed. It is safe for concurrent use.
type Server struct {
	log      *slog.Logger
	timeouts atomic.Pointer[Timeouts]
	runtime  Runtime
	tokens   tokens
	life     context.Context
	end      context.CancelFunc
	http     *http.Server
	listener net.Listener
	work     sync.WaitGroup

	mu     sync.Mutex
	conns  map[*conn]bool
	closed bool
}

// Serve begins to serve on l, which it closes in the end.
func Serve(l net.Listener, timeouts Timeouts, runtime Runtime, log *slog.Logger) *Server {
	s := &Server{runtime: runtime, listener: l, log: log, conns: map[*conn]bool{}}
	s.SetTimeouts(timeouts)
	s.life, s.end = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       timeouts.Creation,
		BaseContext:       func(net.Listener) context.Context { return s.life },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateHijacked {
				c.(*conn).upgraded.Store(true)
			}
		},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug), // what clients do wrong
	}
	s.work.Go(func() {
		if err := s.http.Serve(&listener{l, s}); err != nil && !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("streams are not served any more", "error", err)
		}
	})
	return s
}

// SetTimeouts changes those of connections that are made from now on.
func (s *Server) SetTimeouts(t Timeouts) { s.timeouts.Store(&t) }

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close ends the server and all streams, and waits for their ends.
func (s *Server) Close() error {
	s.end()
	err := s.http.Close()
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		c.Conn.Close()
	}
	s.mu.Unlock()
	s.work.Wait()
	return err
}

// begin counts a piece of work that Close must wait for; it is false if the
// server is closed. s.work.Done ends it.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.work.Add(1)
	return true
}

// Exec returns a URL at which a valid request's command is run.
func (s *Server) Exec(req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	u, err := s.url("exec", req)
	return &runtimeapi.ExecResponse{Url: u}, err
}

// Attach returns a URL at which a valid request's container is attached to.
func (s *Server) Attach(req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	u, err := s.url("attach", req)
	return &runtimeapi.AttachResponse{Url: u}, err
}

// PortForward returns a URL at which a valid request's pod is connected to.
func (s *Server) PortForward(req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	u, err := s.url("portforward", req)
	return &runtimeapi.PortForwardResponse{Url: u}, err
}

func (s *Server) url(verb string, request any) (string, error) {
	token, err := s.tokens.give(request)
	if err != nil {
		return "", err
	}
	u := url.URL{Scheme: "http", Host: s.listener.Addr().String(), Path: "/" + verb + "/" + token}
	return u.String(), nil
}

// handler takes the requests that the URLs stand for.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	serve := func(verb string, do func(http.ResponseWriter, *http.Request, any) bool) {
		mux.HandleFunc("/"+verb+"/{token}", func(w http.ResponseWriter, r *http.Request) {
			if !s.begin() {
				http.Error(w, "the runtime is stopping", http.StatusServiceUnavailable)
				return
			}
			defer s.work.Done()
			c := r.Context().Value(connKey{}).(*conn)
			request, ok := s.tokens.take(r.PathValue("token"))
			if !ok || !do(w, r, request) {
				http.NotFound(w, r)
				return
			}
			if c.upgraded.Load() {
				c.Close()
			}
		})
	}
	serve("exec", func(w http.ResponseWriter, r *http.Request, request any) bool {
		req, ok := request.(*runtimeapi.ExecRequest)
		if ok {
			s.command(w, r, options{req.Stdin, req.Stdout, req.Stderr, req.Tty}, func(streams Streams) (int, error) {
				return s.runtime.Exec(r.Context(), req.ContainerId, req.Cmd, streams)
			})
		}
		return ok
	})
	serve("attach", func(w http.ResponseWriter, r *http.Request, request any) bool {
		req, ok := request.(*runtimeapi.AttachRequest)
		if ok {
			ctx, cancel := whilePresent(r)
			defer cancel()
			s.command(w, r, options{req.Stdin, req.Stdout, req.Stderr, req.Tty}, func(streams Streams) (int, error) {
				return 0, s.runtime.Attach(ctx, req.ContainerId, streams)
			})
		}
		return ok
	})
	serve("portforward", func(w http.ResponseWriter, r *http.Request, request any) bool {
		req, ok := request.(*runtimeapi.PortForwardRequest)
		if ok {
			s.forward(w, r, req)
		}
		return ok
	})
	return mux
}
