package server

import (
	"context"
	"errors"
	"log/slog"
	"path"
	"runtime/debug"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/cri/tracing"
)

// unary is around every call but the streaming ones.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	if limit := deadline(req); limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	if s.tracer != nil {
		var end func(any, error)
		ctx, end = tracing.Call(tracing.Extract(ctx), s.tracer, trace.SpanKindServer, path.Base(info.FullMethod), req)
		defer func() { end(resp, err) }()
	}
	err = s.around(ctx, info.FullMethod, req, func() error {
		if err := cri.Validate(req.(proto.Message)); err != nil {
			return err
		}
		if newer := cri.NewerFields(req.(proto.Message)); len(newer) > 0 {
			s.log.Warn("the request has fields of a newer CRI, which are ignored",
				"call", path.Base(info.FullMethod), "fields", newer)
		}
		resp, err = handler(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	if exec, ok := resp.(*runtimeapi.ExecSyncResponse); ok {
		resp = fitExecSync(exec)
	}
	return resp, nil
}

// stream is around every streaming call. Its request is validated nowhere: all
// of its fields are optional.
func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return s.around(stream.Context(), info.FullMethod, nil, func() error { return handler(srv, stream) })
}

// around makes the call, turns what it returns, or panics with, into an error
// with a code, and logs it.
func (s *Server) around(ctx context.Context, fullMethod string, req any, call func() error) error {
	start := time.Now()
	err, stack := guard(call)
	err = withCode(err)
	attrs := append([]slog.Attr{slog.String("call", path.Base(fullMethod))}, subject(req)...)
	attrs = append(attrs, slog.Duration("took", time.Since(start)))
	if err != nil {
		attrs = append(attrs, slog.String("code", status.Code(err).String()), slog.String("error", status.Convert(err).Message()))
	}
	if stack != "" {
		attrs = append(attrs, slog.String("stack", stack))
	}
	s.log.LogAttrs(ctx, level(err), "CRI call", attrs...)
	return err
}

// guard makes a panic of call an error, with the stack.
func guard(call func() error) (err error, stack string) {
	defer func() {
		if p := recover(); p != nil {
			err = status.Errorf(codes.Internal, "panic: %v", p)
			stack = string(debug.Stack())
		}
	}()
	return call(), ""
}

// withCode gives an error the code it is sent with: its own, that of an ended
// context, or Unknown, which is also what the kubelet expects of pull errors.
func withCode(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, err.Error())
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	default:
		return status.Error(codes.Unknown, err.Error())
	}
}

// How long calls may take whose client set no deadline of its own, or a longer
// one: the kubelet's own limits. Nothing is held up forever by a client that
// waits forever. A pull has no limit; the image store watches its progress.
const (
	ordinaryLimit = 2 * time.Minute
	sandboxLimit  = 2 * ordinaryLimit
)

// deadline is the limit for a request, 0 for none.
func deadline(req any) time.Duration {
	switch r := req.(type) {
	case *runtimeapi.PullImageRequest:
		return 0
	case *runtimeapi.CheckpointContainerRequest, *runtimeapi.CheckpointPodRequest, *runtimeapi.RestorePodRequest:
		return 0 // as much as there is memory; the runtime has its own limits
	case *runtimeapi.ExecSyncRequest:
		if r.GetTimeout() <= 0 {
			return 0 // the protocol's "forever"
		}
		return seconds(r.GetTimeout()) + ordinaryLimit
	case *runtimeapi.StopContainerRequest:
		return seconds(r.GetTimeout()) + ordinaryLimit
	case *runtimeapi.RunPodSandboxRequest, *runtimeapi.StopPodSandboxRequest, *runtimeapi.RemovePodSandboxRequest:
		return sandboxLimit
	default:
		return ordinaryLimit
	}
}

// seconds converts without the overflow that an absurd number of them brings.
func seconds(n int64) time.Duration {
	const most = int64(365 * 24 * time.Hour / time.Second)
	return time.Duration(max(0, min(n, most))) * time.Second
}

// level shows what went wrong. A call that succeeded is for debugging: the
// runtime itself tells what it changed, and a kubelet asks questions all the
// time, also about what is gone.
func level(err error) slog.Level {
	switch status.Code(err) {
	case codes.OK, codes.Canceled, codes.NotFound, codes.Unimplemented:
		return slog.LevelDebug
	case codes.Internal:
		return slog.LevelError
	default:
		return slog.LevelWarn
	}
}

// subject names what a request is about. It takes these fields alone, and never
// the request: that may hold credentials and secrets in variables.
func subject(req any) []slog.Attr {
	var attrs []slog.Attr
	if r, ok := req.(*runtimeapi.RunPodSandboxRequest); ok {
		m := r.GetConfig().GetMetadata()
		attrs = append(attrs, slog.String("name", m.GetName()), slog.String("namespace", m.GetNamespace()), slog.String("uid", m.GetUid()))
	}
	if r, ok := req.(interface{ GetPodSandboxId() string }); ok {
		attrs = append(attrs, slog.String("pod", r.GetPodSandboxId()))
	}
	if r, ok := req.(*runtimeapi.CreateContainerRequest); ok {
		attrs = append(attrs, slog.String("name", r.GetConfig().GetMetadata().GetName()), slog.String("image", r.GetConfig().GetImage().GetImage()))
	}
	if r, ok := req.(interface{ GetContainerId() string }); ok {
		attrs = append(attrs, slog.String("container", r.GetContainerId()))
	}
	if r, ok := req.(interface{ GetImage() *runtimeapi.ImageSpec }); ok {
		attrs = append(attrs, slog.String("image", r.GetImage().GetImage()))
	}
	return attrs
}

// fitExecSync drops the end of outputs that together exceed a message: each may
// have 16 MiB, which is also the most that a client accepts for both.
func fitExecSync(r *runtimeapi.ExecSyncResponse) *runtimeapi.ExecSyncResponse {
	const room = cri.MaxMessageSize - 1<<10 // for tags, lengths and the exit code
	excess := len(r.GetStdout()) + len(r.GetStderr()) - room
	if excess <= 0 {
		return r
	}
	// The shorter of the two is kept whole if it can be.
	stdout, stderr := r.GetStdout(), r.GetStderr()
	if len(stdout) >= len(stderr) {
		stderr = stderr[:min(len(stderr), room/2)]
		stdout = stdout[:min(len(stdout), room-len(stderr))]
	} else {
		stdout = stdout[:min(len(stdout), room/2)]
		stderr = stderr[:min(len(stderr), room-len(stdout))]
	}
	return &runtimeapi.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: r.GetExitCode()}
}
