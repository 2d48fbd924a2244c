// Package tracing sends OpenTelemetry traces to a collector, by OTLP over gRPC,
// and carries a trace across the seam between agent and runtime: the W3C
// traceparent in the metadata of a call, as kubelet, containerd and CRI-O have
// it. Agent, remote, server and engine make spans by the API of
// go.opentelemetry.io/otel/trace; whoever has no provider makes none, at no cost.
//
// Spans wait in a bounded queue and are dropped when that is full: a collector
// that is slow or away never holds up a pod. Nothing is kept on disk.
package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"
)

// DefaultEndpoint is where a collector on the same machine listens.
const DefaultEndpoint = "localhost:4317"

// Settings say whether and where traces go, as the kubelet's configuration and
// the engine's do.
type Settings struct {
	Endpoint string // host:port or a gRPC target of the scheme dns or unix; "" for DefaultEndpoint
	// PerMillion is how many of a million traces that begin here are sent. Those
	// that begin elsewhere go on if their beginning is sent.
	PerMillion int32
}

// Validate names the field that cannot be used.
func (s Settings) Validate() error {
	if s.PerMillion < 0 || s.PerMillion > 1e6 {
		return fmt.Errorf("samplingRatePerMillion: %d is not between 0 and 1000000", s.PerMillion)
	}
	if s.Endpoint == "" {
		return nil
	}
	if u, err := url.Parse(s.Endpoint); err == nil && strings.Contains(s.Endpoint, "://") {
		if !slices.Contains([]string{"dns", "unix", "unix-abstract"}, u.Scheme) {
			return fmt.Errorf("endpoint: scheme %q is not dns, unix or unix-abstract: traces go by gRPC", u.Scheme)
		}
		return nil
	}
	if strings.HasPrefix(s.Endpoint, "unix:") {
		return nil
	}
	if _, _, err := net.SplitHostPort(s.Endpoint); err != nil {
		return fmt.Errorf("endpoint: %q is not host:port", s.Endpoint)
	}
	return nil
}

// Source is what sends the spans.
type Source struct {
	Service, Version string // "podstead-node"
	Host             string
	Log              *slog.Logger
}

// exportTimeout bounds one delivery, and stopTimeout the last one.
const (
	exportTimeout = 5 * time.Second
	stopTimeout   = time.Second
)

// Start returns a provider of spans, and what sends the last of them and ends
// it. It connects in the background: a collector may come later.
func Start(ctx context.Context, s Settings, from Source) (provider trace.TracerProvider, stop func(), err error) {
	if err := s.Validate(); err != nil {
		return nil, nil, err
	}
	endpoint := s.Endpoint
	if endpoint == "" {
		endpoint = DefaultEndpoint
	}
	exporter, err := otlptracegrpc.New(ctx,
		otlptracegrpc.WithEndpoint(endpoint), otlptracegrpc.WithInsecure(), otlptracegrpc.WithTimeout(exportTimeout),
		// What a collector misses while it is away is lost; trying again would keep
		// the spans that come after it waiting.
		otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{Enabled: false}),
	)
	if err != nil {
		return nil, nil, fmt.Errorf("send traces to %s: %w", endpoint, err)
	}
	sampler := sdk.NeverSample()
	if s.PerMillion > 0 {
		sampler = sdk.TraceIDRatioBased(float64(s.PerMillion) / 1e6)
	}
	p := sdk.NewTracerProvider(
		sdk.WithBatcher(&delivery{SpanExporter: exporter, endpoint: endpoint, log: from.Log}, sdk.WithExportTimeout(exportTimeout), sdk.WithBatchTimeout(time.Second)),
		sdk.WithSampler(sdk.ParentBased(sampler)),
		sdk.WithResource(resource.NewSchemaless(
			attribute.String("service.name", from.Service), attribute.String("service.version", from.Version), attribute.String("host.name", from.Host))),
	)
	return p, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		// What could not be delivered is in the log already.
		_ = p.Shutdown(ctx)
	}, nil
}

// delivery tells once when a collector goes away and once when it is back,
// instead of at each batch. Its methods are called one at a time.
type delivery struct {
	sdk.SpanExporter
	endpoint string
	log      *slog.Logger
	lost     int // spans, since the collector is away
}

func (d *delivery) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := d.SpanExporter.ExportSpans(ctx, spans)
	switch {
	case err != nil && d.lost == 0:
		d.log.Warn("traces are not delivered", "endpoint", d.endpoint, "error", err)
	case err == nil && d.lost > 0:
		d.log.Info("traces are delivered again", "endpoint", d.endpoint, "lost", d.lost)
		d.lost = 0
	}
	if err != nil {
		d.lost += len(spans)
	}
	return nil
}

// Inject puts the trace of ctx, if there is one, into the metadata of a call.
func Inject(ctx context.Context) context.Context {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	for _, key := range carrier.Keys() {
		ctx = metadata.AppendToOutgoingContext(ctx, key, carrier.Get(key))
	}
	return ctx
}

// Extract makes the trace that a call came with that of ctx.
func Extract(ctx context.Context) context.Context {
	in, _ := metadata.FromIncomingContext(ctx)
	carrier := propagation.MapCarrier{}
	for _, key := range (propagation.TraceContext{}).Fields() {
		if v := in.Get(key); len(v) == 1 {
			carrier[key] = v[0]
		}
	}
	return propagation.TraceContext{}.Extract(ctx, carrier)
}
