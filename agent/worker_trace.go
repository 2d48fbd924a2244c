package agent

import (
	"context"
	"errors"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"

	"podstead/agent/client"
	"podstead/agent/internal/plan"
	"podstead/cri/tracing"
)

// traceOf are the attributes of a pod, under the kubelet's names.
func traceOf(pod *corev1.Pod) []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.String("k8s.namespace.name", pod.Namespace),
		attribute.String("k8s.pod.name", pod.Name),
		attribute.String("k8s.pod.uid", string(pod.UID)),
	}
}

// beginTrace begins the span of the pod's start, if its first steps or those of
// a new sandbox are about to be done.
func (w *worker) beginTrace(now time.Time) {
	if w.starting != nil || w.ending != nil {
		return
	}
	for _, s := range w.last.Steps {
		switch {
		case s.Kind == plan.CreateSandbox, s.Kind == plan.Prepare && !w.seen.Present():
		default:
			continue
		}
		if w.status.StartTime == nil { // it is new
			now = w.start
		}
		_, w.starting = w.node.tracer.Start(context.Background(), "pod start", trace.WithNewRoot(),
			trace.WithTimestamp(now), trace.WithAttributes(traceOf(w.pod)...))
		return
	}
}

// inTrace makes what is done in ctx part of the pod's start, while that lasts.
func (w *worker) inTrace(ctx context.Context) context.Context {
	if w.starting == nil {
		return ctx
	}
	return trace.ContextWithSpan(ctx, w.starting)
}

// endTrace ends the span of the pod's start when the pod is ready, or will not
// be any more.
func (w *worker) endTrace(now time.Time) {
	if w.starting == nil {
		return
	}
	switch {
	case isReady(&w.status) && len(w.busy) > 0:
		return // the step that started the last container is about to end
	case isReady(&w.status):
		w.starting.AddEvent("ready", trace.WithTimestamp(now))
	case w.last.Finished:
		w.starting.AddEvent(string(w.status.Phase), trace.WithTimestamp(now))
	case w.ending != nil:
		w.starting.SetStatus(codes.Error, "the pod ended before it was ready")
	default:
		return
	}
	w.starting.End()
	w.starting = nil
}

// breakTrace ends the span of a start that goes on without this agent.
func (w *worker) breakTrace() {
	if w.starting != nil {
		tracing.End(w.starting, errors.New("the agent ended before the pod was ready"))
	}
}

func isReady(s *corev1.PodStatus) bool {
	for _, c := range s.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// probed records how long containers took until their startup and readiness
// probes first succeeded: an entry, and a span of the pod's start.
func (w *worker) probed() {
	for id, p := range w.probes {
		for _, s := range p.Successes() {
			c := w.known[id]
			what := strings.ToLower(s.Kind) + " probe"
			w.flight.Add(client.FlightEntry{At: s.Began, Took: s.At.Sub(s.Began), Kind: client.FlightStep, Container: c.Name, What: what})
			if w.starting == nil {
				continue
			}
			_, span := w.node.tracer.Start(w.inTrace(context.Background()), what, trace.WithTimestamp(s.Began),
				trace.WithAttributes(attribute.String("k8s.container.name", c.Name), attribute.String("container.id", id)))
			span.End(trace.WithTimestamp(s.At))
		}
	}
}
