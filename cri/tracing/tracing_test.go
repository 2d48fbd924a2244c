package tracing

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/tracing/tracingtest"
)

func start(t *testing.T, s Settings, log *slog.Logger) (trace.Tracer, func()) {
	t.Helper()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	p, stop, err := Start(t.Context(), s, Source{Service: "test", Version: "1", Host: "here", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return Tracer(p), stop
}

func TestSettings(t *testing.T) {
	for _, endpoint := range []string{"", "localhost:4317", "[::1]:1", "dns:///collector:4317", "unix:///run/x.sock", "unix:/run/x.sock"} {
		if err := (Settings{Endpoint: endpoint, PerMillion: 1e6}).Validate(); err != nil {
			t.Errorf("%q: %v", endpoint, err)
		}
	}
	for want, s := range map[string]Settings{
		"samplingRatePerMillion: -1":      {PerMillion: -1},
		"samplingRatePerMillion: 1000001": {PerMillion: 1e6 + 1},
		`endpoint: scheme "http"`:         {Endpoint: "http://localhost:4317"},
		`endpoint: "localhost"`:           {Endpoint: "localhost"},
	} {
		if err := s.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%+v: %v, want %s", s, err, want)
		}
	}
}

// TestCall: a call's span says what it is about and not what is in it, and the
// trace goes on beyond gRPC.
func TestCall(t *testing.T) {
	c := tracingtest.Start(t)
	tracer, stop := start(t, Settings{Endpoint: c.Endpoint, PerMillion: 1e6}, nil)
	req := &runtimeapi.CreateContainerRequest{PodSandboxId: "sandbox", Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "web"}, Image: &runtimeapi.ImageSpec{Image: "sha256:1"},
		Envs: []*runtimeapi.KeyValue{{Key: "PASSWORD", Value: []byte("s3cret")}}}}
	ctx, end := Call(t.Context(), tracer, trace.SpanKindClient, "CreateContainer", req)
	out, _ := metadata.FromOutgoingContext(Inject(ctx))
	there := Extract(metadata.NewIncomingContext(context.Background(), out))
	there, endThere := Call(there, tracer, trace.SpanKindServer, "CreateContainer", req)
	_, endPart := Span(there, "launch")
	endPart(errors.New("no such file"))
	endThere(nil, status.Error(codes.NotFound, "gone"))
	end(&runtimeapi.CreateContainerResponse{ContainerId: "c1"}, nil)
	stop()
	spans := c.Spans()
	tree := tracingtest.Tree(spans)
	if len(spans) != 3 {
		t.Fatalf("%d spans:\n%s", len(spans), tree)
	}
	part, server, client := spans[0], spans[1], spans[2]
	if part.Parent != server.ID || server.Parent != client.ID || client.Parent != "" || part.Error != "no such file" || server.Attributes["rpc.grpc.status_code"] != "5" {
		t.Errorf("spans:\n%s%+v", tree, spans)
	}
	for key, want := range map[string]string{
		"service.name": "test", "service.version": "1", "host.name": "here", "rpc.method": "CreateContainer",
		"k8s.container.name": "web", "container.id": "c1", "cri.sandbox.id": "sandbox", "container.image.name": "sha256:1",
	} {
		if client.Attributes[key] != want {
			t.Errorf("%s is %q, want %q", key, client.Attributes[key], want)
		}
	}
	for _, s := range spans {
		for key, v := range s.Attributes {
			if strings.Contains(v, "s3cret") {
				t.Errorf("%s has a secret: %s=%s", s.Name, key, v)
			}
		}
	}
}

// TestSampling: nothing begins here with a rate of 0, but what began elsewhere
// goes on.
func TestSampling(t *testing.T) {
	c := tracingtest.Start(t)
	tracer, stop := start(t, Settings{Endpoint: c.Endpoint}, nil)
	_, own := tracer.Start(t.Context(), "own")
	own.End()
	in := metadata.Pairs("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	_, joined := tracer.Start(Extract(metadata.NewIncomingContext(t.Context(), in)), "joined")
	joined.End()
	stop()
	if spans := c.Spans(); len(spans) != 1 || spans[0].Name != "joined" || spans[0].Trace != "0af7651916cd43dd8448eb211c80319c" || spans[0].Parent != "b7ad6b7169203331" {
		t.Errorf("%+v", spans)
	}
}

// TestCollectorAway: spans are dropped, once with a word in the log, nobody
// waits, and what comes when the collector is back is delivered.
func TestCollectorAway(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "otlp.sock")
	var log strings.Builder
	tracer, stop := start(t, Settings{Endpoint: "unix://" + socket, PerMillion: 1e6}, slog.New(slog.NewTextHandler(&log, nil)))
	began := time.Now()
	for range 10_000 { // more than the queue holds
		_, s := tracer.Start(t.Context(), "lost")
		s.End()
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("10,000 spans without a collector took %v", took)
	}
	stop()
	if n := strings.Count(log.String(), "traces are not delivered"); n != 1 {
		t.Errorf("the log says so %d times:\n%s", n, log.String())
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	c := tracingtest.Serve(t, l)
	tracer, stop = start(t, Settings{Endpoint: "unix://" + socket, PerMillion: 1e6}, nil)
	_, s := tracer.Start(t.Context(), "found")
	s.End()
	stop()
	if spans := c.Spans(); len(spans) != 1 || spans[0].Name != "found" {
		t.Errorf("%+v", spans)
	}
}

func TestNothingWithoutTracing(t *testing.T) {
	ctx, span := Tracer(nil).Start(t.Context(), "nothing")
	defer span.End()
	if out, ok := metadata.FromOutgoingContext(Inject(ctx)); ok {
		t.Errorf("sent along: %v", out)
	}
	if same, _ := Span(ctx, "nothing"); same != ctx {
		t.Error("a span was made")
	}
}
