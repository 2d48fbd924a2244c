package image

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// span begins a part of the caller's span, if it has one that is sent; the
// function that it returns ends it.
func span(ctx context.Context, name string, attrs ...attribute.KeyValue) (context.Context, func(error, ...attribute.KeyValue)) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, func(error, ...attribute.KeyValue) {}
	}
	ctx, s := parent.TracerProvider().Tracer("podstead").Start(ctx, name, trace.WithAttributes(attrs...))
	return ctx, func(err error, more ...attribute.KeyValue) {
		s.SetAttributes(more...)
		if err != nil {
			s.SetStatus(codes.Error, reason(err))
		}
		s.End()
	}
}

// found is what a reference has turned out to be.
func (a *assembly) found() []attribute.KeyValue {
	if a == nil {
		return nil
	}
	return []attribute.KeyValue{attribute.String("oci.manifest.digest", a.manifest.Digest), attribute.Int("podstead.image.layers", len(a.doc.Layers))}
}

// came is what became of a layer: where its bytes came from, and how many.
func (l *assembledLayer) came(a *assembly) []attribute.KeyValue {
	out := []attribute.KeyValue{attribute.String("server.address", a.progress.host())}
	if w := l.work; w != nil && w.blob != nil {
		written, _, _, _ := w.blob.state()
		out = append(out, attribute.Int64("podstead.layer.bytes", written), attribute.Int64("podstead.layer.unpacked", w.unpacked.Load()),
			attribute.Int64("podstead.layer.retries", w.blob.retries.Load()))
	}
	return out
}
