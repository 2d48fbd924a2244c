// Package tracingtest is a collector of OpenTelemetry traces inside a test: it
// takes spans by OTLP over gRPC, as Jaeger and its kin do, and shows them.
package tracingtest

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// Span is one span as it arrived.
type Span struct {
	Name, Trace, ID, Parent string // IDs in hexadecimal, Parent "" for the first of a trace
	Service                 string
	Attributes              map[string]string // also those of its source
	Events                  []string
	Begin, End              time.Time
	Error                   string // message of its status, if that is Error
}

// Collector has what arrived.
type Collector struct {
	collector.UnimplementedTraceServiceServer
	Endpoint string // host:port

	mu    sync.Mutex
	spans []Span
	news  chan struct{} // closed and replaced when spans arrive
}

// Start serves a collector on a port of loopback until the test ends.
func Start(t testing.TB) *Collector {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return Serve(t, l)
}

// Serve serves a collector until the test ends, and closes l then.
func Serve(t testing.TB, l net.Listener) *Collector {
	c := &Collector{Endpoint: l.Addr().String(), news: make(chan struct{})}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, c)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return c
}

// Export implements the OTLP service.
func (c *Collector) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range req.ResourceSpans {
		for _, scope := range r.ScopeSpans {
			for _, s := range scope.Spans {
				c.spans = append(c.spans, span(s, r.GetResource().GetAttributes()))
			}
		}
	}
	close(c.news)
	c.news = make(chan struct{})
	return &collector.ExportTraceServiceResponse{}, nil
}

func span(s *tracepb.Span, resource []*common.KeyValue) Span {
	out := Span{Name: s.Name, Trace: hex.EncodeToString(s.TraceId), ID: hex.EncodeToString(s.SpanId), Parent: hex.EncodeToString(s.ParentSpanId),
		Begin: time.Unix(0, int64(s.StartTimeUnixNano)), End: time.Unix(0, int64(s.EndTimeUnixNano)), Attributes: map[string]string{}}
	for _, a := range append(slices.Clone(resource), s.Attributes...) {
		out.Attributes[a.Key] = value(a.Value)
	}
	out.Service = out.Attributes["service.name"]
	for _, e := range s.Events {
		out.Events = append(out.Events, e.Name)
	}
	if s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR {
		out.Error = s.Status.Message
	}
	return out
}

func value(v *common.AnyValue) string {
	switch v := v.GetValue().(type) {
	case *common.AnyValue_StringValue:
		return v.StringValue
	case *common.AnyValue_IntValue:
		return fmt.Sprint(v.IntValue)
	case *common.AnyValue_BoolValue:
		return fmt.Sprint(v.BoolValue)
	case *common.AnyValue_ArrayValue:
		var parts []string
		for _, e := range v.ArrayValue.GetValues() {
			parts = append(parts, value(e))
		}
		return strings.Join(parts, " ")
	}
	return fmt.Sprint(v)
}

// Spans returns all that arrived so far.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// Await waits until f is satisfied with what arrived, and returns that.
func (c *Collector) Await(t testing.TB, what string, f func([]Span) bool) []Span {
	t.Helper()
	patience := time.NewTimer(time.Minute)
	defer patience.Stop()
	for {
		c.mu.Lock()
		spans, news := slices.Clone(c.spans), c.news
		c.mu.Unlock()
		if f(spans) {
			return spans
		}
		select {
		case <-news:
		case <-patience.C:
			t.Fatalf("no %s among the spans:\n%s", what, Tree(spans))
		}
	}
}

// Tree draws spans below their parents, in the order in which they began.
func Tree(spans []Span) string {
	spans = slices.Clone(spans)
	slices.SortStableFunc(spans, func(a, b Span) int { return a.Begin.Compare(b.Begin) })
	known := map[string]bool{}
	for _, s := range spans {
		known[s.ID] = true
	}
	var b strings.Builder
	var below func(parent, indent string)
	below = func(parent, indent string) {
		for _, s := range spans {
			if s.Parent != parent && !(parent == "" && !known[s.Parent]) {
				continue
			}
			fmt.Fprintf(&b, "%s%s %s", indent, s.Name, s.End.Sub(s.Begin).Round(10*time.Microsecond))
			if s.Error != "" {
				fmt.Fprintf(&b, " FAILED %s", s.Error)
			}
			b.WriteString("\n")
			below(s.ID, indent+"  ")
		}
	}
	below("", "")
	return b.String()
}
