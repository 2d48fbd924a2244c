// Package server serves any cri.Runtime to kubelets, crictl and other clients
// as the gRPC services RuntimeService and ImageService of CRI v1.
//
// All that is common to the verbs happens in one interceptor (intercept.go):
// the request is validated, given a deadline, logged with the time it took, its
// error gets a gRPC code, and a panic costs one call instead of the process.
// The Stream… forms of the list calls are made from the list calls (stream.go).
// A call that cri.Runtime has no verb for is Unimplemented, by its name.
//
// The server has no state besides open connections. It does not serve the
// streams of exec, attach and port-forward, whose URLs are the runtime's.
package server

import (
	"context"
	"log/slog"
	"net"
	"sync"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/cri/tracing"
)

// Config of a Server.
type Config struct {
	Runtime cri.Runtime
	Tracing trace.TracerProvider // makes a span of each call; nil: none
	Log     *slog.Logger
}

// Server serves one runtime on any number of listeners. Safe for concurrent use.
type Server struct {
	grpc   *grpc.Server
	log    *slog.Logger
	tracer trace.Tracer // nil: none
	// stopping ends the streams that would otherwise have no end.
	stopping chan struct{}
	stop     sync.Once
}

// The server is idle most of the time and its messages are small: buffers are
// kept small or shared, and a few goroutines with grown stacks are kept for the
// handlers instead of growing one for each call.
const (
	bufferSize = 8 << 10
	workers    = 4
)

// New makes a server; Serve does the work.
func New(cfg Config) *Server {
	s := &Server{log: cfg.Log, stopping: make(chan struct{})}
	if cfg.Tracing != nil {
		s.tracer = tracing.Tracer(cfg.Tracing)
	}
	s.grpc = grpc.NewServer(
		grpc.MaxRecvMsgSize(cri.MaxMessageSize),
		grpc.MaxSendMsgSize(cri.MaxMessageSize),
		grpc.WriteBufferSize(bufferSize),
		grpc.ReadBufferSize(bufferSize),
		grpc.NumStreamWorkers(workers),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	)
	runtimeapi.RegisterRuntimeServiceServer(s.grpc, &runtimeService{Runtime: cfg.Runtime, stopping: s.stopping})
	runtimeapi.RegisterImageServiceServer(s.grpc, &imageService{Images: cfg.Runtime})
	return s
}

// Serve answers clients of l until Shutdown, then returns nil. It closes l.
func (s *Server) Serve(l net.Listener) error { return s.grpc.Serve(l) }

// Shutdown closes the listeners, lets calls under way finish until ctx ends and
// then cancels them. Event streams end at once, with Unavailable.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop.Do(func() { close(s.stopping) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.grpc.GracefulStop()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		s.grpc.Stop() // also ends GracefulStop
		<-done
		return ctx.Err()
	}
}

// unimplementedRuntime and unimplementedImages answer the calls for which
// cri.Runtime has no verb. They are types of their own to stand one embedding
// deeper than the runtime, whose methods thereby win.
type (
	unimplementedRuntime struct {
		runtimeapi.UnimplementedRuntimeServiceServer
	}
	unimplementedImages struct {
		runtimeapi.UnimplementedImageServiceServer
	}
)

// runtimeService is RuntimeService on a runtime.
type runtimeService struct {
	cri.Runtime
	unimplementedRuntime
	stopping <-chan struct{}
}

// imageService is ImageService on a runtime.
type imageService struct {
	cri.Images
	unimplementedImages
}
