package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"go.opentelemetry.io/otel/trace"

	"podstead/cri/tracing"
)

// startTracing makes the provider of spans of the agent ("podstead-node") or of
// the CRI service ("podstead-cri"); without settings there is none.
func (n *nodeOptions) startTracing(ctx context.Context, s *tracing.Settings, service string, log *slog.Logger) (trace.TracerProvider, func(), error) {
	if s == nil {
		return nil, func() {}, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, nil, fmt.Errorf("host name: %w", err)
	}
	if n.nodeName != "" {
		host = n.nodeName
	}
	return tracing.Start(ctx, *s, tracing.Source{Service: service, Version: version, Host: host, Log: log})
}
