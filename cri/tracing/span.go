package tracing

import (
	"context"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// scope names the maker of the spans, as instrumentation scopes do.
const scope = "podstead"

// Tracer is a provider's, and one that makes nothing if there is none.
func Tracer(p trace.TracerProvider) trace.Tracer {
	if p == nil {
		p = noop.NewTracerProvider()
	}
	return p.Tracer(scope)
}

// Span begins a part of the span of ctx; the function that it returns ends it,
// with its error. Without a span in ctx nothing is made.
func Span(ctx context.Context, name string, attrs ...attribute.KeyValue) (context.Context, func(error)) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, func(error) {}
	}
	ctx, span := parent.TracerProvider().Tracer(scope).Start(ctx, name, trace.WithAttributes(attrs...))
	return ctx, func(err error) { End(span, err) }
}

// With makes the span of from that of ctx: work that goes on without its caller
// still belongs to it.
func With(ctx, from context.Context) context.Context {
	return trace.ContextWithSpan(ctx, trace.SpanFromContext(from))
}

// End ends a span with the error that what it stands for ended with.
func End(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, short(err.Error()))
	}
	span.End()
}

// short cuts the text of an error, which others may have had a say in.
func short(s string) string {
	const most = 500
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// Call begins the span of a CRI call ("RunPodSandbox"), named as gRPC's own
// instrumentation names it, with what the call is about; the function that it
// returns ends it.
func Call(ctx context.Context, tracer trace.Tracer, kind trace.SpanKind, verb string, req any) (context.Context, func(resp any, err error)) {
	service := "runtime.v1.RuntimeService"
	if strings.HasSuffix(verb, "Image") || strings.HasPrefix(verb, "Image") || verb == "ListImages" {
		service = "runtime.v1.ImageService"
	}
	ctx, span := tracer.Start(ctx, service+"/"+verb, trace.WithSpanKind(kind))
	if !span.IsRecording() {
		return ctx, func(any, error) {}
	}
	span.SetAttributes(attribute.String("rpc.system", "grpc"), attribute.String("rpc.service", service), attribute.String("rpc.method", verb))
	span.SetAttributes(subject(req)...)
	return ctx, func(resp any, err error) {
		span.SetAttributes(attribute.Int("rpc.grpc.status_code", int(status.Code(err))))
		if err == nil {
			span.SetAttributes(subject(resp)...)
		}
		End(span, err)
	}
}

// subject is what a request or response is about. It takes these fields alone,
// and never the message: that may hold credentials and secrets in variables.
func subject(m any) (attrs []attribute.KeyValue) {
	add := func(key, value string) {
		if value != "" {
			attrs = append(attrs, attribute.String(key, value))
		}
	}
	switch r := m.(type) {
	case *runtimeapi.RunPodSandboxRequest:
		meta := r.GetConfig().GetMetadata()
		add("k8s.pod.name", meta.GetName())
		add("k8s.namespace.name", meta.GetNamespace())
		add("k8s.pod.uid", meta.GetUid())
	case *runtimeapi.CreateContainerRequest:
		add("k8s.container.name", r.GetConfig().GetMetadata().GetName())
		add("container.image.name", r.GetConfig().GetImage().GetImage())
	case *runtimeapi.PullImageResponse:
		add("container.image.id", r.GetImageRef())
	case *runtimeapi.ImageStatusResponse:
		add("container.image.id", r.GetImage().GetId())
	}
	if r, ok := m.(interface{ GetImage() *runtimeapi.ImageSpec }); ok {
		add("container.image.name", r.GetImage().GetImage())
	}
	if r, ok := m.(interface{ GetPodSandboxId() string }); ok {
		add("cri.sandbox.id", r.GetPodSandboxId())
	}
	if r, ok := m.(interface{ GetContainerId() string }); ok {
		add("container.id", r.GetContainerId())
	}
	return attrs
}
