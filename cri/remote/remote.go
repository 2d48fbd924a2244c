// Package remote is cri.Runtime over gRPC: it lets the node agent and the
// command line use any CRI v1 runtime (containerd, CRI-O, our own in another
// process) through its unix socket, as if it were in this process.
//
// # Connections
//
// One connection is made at the first call and made anew whenever it breaks; the
// caller does nothing for that. A call while the runtime's socket refuses
// connections, or one that was under way when it went, fails with Unavailable
// and may be repeated, as every verb is idempotent. The runtime is tried again
// at least every second, so that it is found soon after it is back.
//
// ContainerEvents ends with Unavailable when the connection breaks: events were
// missed, and the caller must list anew after it has subscribed again.
package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/cri/tracing"
)

// Runtime is a runtime behind a socket. Safe for concurrent use.
type Runtime struct {
	runtime runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
	conns   []*grpc.ClientConn
	limit   time.Duration // of ordinary calls, those of sandboxes have twice that
}

// Settings of a Runtime; the zero ones are the usual.
type Settings struct {
	// Images is the endpoint of the images, if that is another.
	Images string
	// Limit of calls whose context has none that is less; 0: DefaultLimit.
	Limit time.Duration
}

var _ cri.Runtime = (*Runtime)(nil)

// A local socket answers at once or not at all, so waiting longer and longer
// between attempts, for the sake of a distant server, would only be slow.
var reconnect = grpc.ConnectParams{
	Backoff: backoff.Config{
		BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second,
	},
	// Our own runtime's socket accepts while the engine behind it is started anew,
	// which on a slow machine takes a while.
	MinConnectTimeout: 20 * time.Second,
}

// New prepares to use the runtime at an endpoint: "unix:///run/x.sock" or an
// absolute path. It does not connect; the runtime may be started later.
func New(endpoint string) (*Runtime, error) { return NewWith(endpoint, Settings{}) }

// NewWith is New with settings.
func NewWith(endpoint string, s Settings) (*Runtime, error) {
	conn, err := dial("runtime", endpoint)
	if err != nil {
		return nil, err
	}
	r := &Runtime{runtime: runtimeapi.NewRuntimeServiceClient(conn), conns: []*grpc.ClientConn{conn}, limit: cmp.Or(s.Limit, DefaultLimit)}
	if s.Images != "" && s.Images != endpoint {
		if conn, err = dial("image service", s.Images); err != nil {
			return nil, errors.Join(err, r.Close())
		}
		r.conns = append(r.conns, conn)
	}
	r.images = runtimeapi.NewImageServiceClient(conn)
	return r, nil
}

// dial prepares a connection to what is at an endpoint.
func dial(what, endpoint string) (*grpc.ClientConn, error) {
	socket := strings.TrimPrefix(endpoint, "unix://")
	if !filepath.IsAbs(socket) {
		return nil, fmt.Errorf("%s endpoint %q is not the absolute path of a unix socket, with or without unix:// before it", what, endpoint)
	}
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(reconnect),
		grpc.WithIdleTimeout(0),
		grpc.WithUnaryInterceptor(traced),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(cri.MaxMessageSize),
			grpc.MaxCallSendMsgSize(cri.MaxMessageSize)),
	)
	if err != nil {
		return nil, fmt.Errorf("%s endpoint %q: %w", what, endpoint, err)
	}
	return conn, nil
}

// traced sends the trace that a call is part of along with it.
func traced(ctx context.Context, method string, req, resp any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(tracing.Inject(ctx), method, req, resp, conn, opts...)
}

// Close ends the connections and the calls under way.
func (r *Runtime) Close() error {
	var errs []error
	for _, c := range r.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// DefaultLimit of calls is the kubelet's. A runtime that hangs must not hang the
// agent. Pulls are not limited: only the runtime can tell a slow one from a stuck
// one.
const DefaultLimit = 2 * time.Minute

// call makes one unary call with a time limit, 0 meaning none.
func call[Q, A any](ctx context.Context, limit time.Duration, f func(context.Context, Q, ...grpc.CallOption) (A, error), req Q) (A, error) {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	return f(ctx, req)
}

// seconds converts without the overflow that an absurd number of them brings.
func seconds(n int64) time.Duration {
	const most = int64(365 * 24 * time.Hour / time.Second)
	return time.Duration(max(0, min(n, most))) * time.Second
}
