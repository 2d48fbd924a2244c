// Package flight is the flight recorder of a pod: the last things that were done
// for it and that happened to it, with how long they took, in memory and in a
// file of the pod's directory, from which the next agent goes on. What it records
// are also the spans of the pod's traces.
//
// It keeps names, times and errors, never requests: those may hold secrets.
package flight

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"podstead/agent/client"
	"podstead/cri/tracing"
	"podstead/sys"
)

// kept is how many entries a recorder keeps; its file has up to twice as many.
const kept = 200

// Recorder is the flight recorder of one pod. Its methods may be called at the
// same time, and do nothing on nil.
type Recorder struct {
	path   string
	tracer trace.Tracer
	pod    []attribute.KeyValue // on spans that begin a trace

	mu      sync.Mutex
	entries []client.FlightEntry
	under   []*client.FlightEntry // way, in the order in which they began
	pending []byte                // not in the file yet: the pod has no directory
	lines   int                   // of the file
	hidden  *strings.Replacer
}

// Open returns the recorder with the entries of its file. What of the file
// cannot be read is left out: it may have been cut off by a crash. The tracer
// makes its spans, those that begin a trace with the attributes of the pod.
func Open(path string, tracer trace.Tracer, pod ...attribute.KeyValue) *Recorder {
	r := &Recorder{path: path, tracer: tracer, pod: pod}
	data, err := os.ReadFile(path)
	if err != nil {
		return r
	}
	for line := range bytes.Lines(data) {
		var e client.FlightEntry
		if json.Unmarshal(line, &e) == nil {
			r.entries = append(r.entries, e)
		}
		r.lines++
	}
	r.entries = last(r.entries)
	return r
}

func last(entries []client.FlightEntry) []client.FlightEntry {
	if len(entries) > kept {
		return slices.Clone(entries[len(entries)-kept:])
	}
	return entries
}

// Add records an entry.
func (r *Recorder) Add(e client.FlightEntry) {
	if r == nil {
		return
	}
	line, err := json.Marshal(e)
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries = last(append(r.entries, e))
	r.pending = append(append(r.pending, line...), '\n')
	r.write()
}

// write brings what is pending to the file. A recorder that cannot write goes on
// in memory: nothing else is to fail for it.
func (r *Recorder) write() {
	if r.lines >= 2*kept {
		r.rewrite()
		return
	}
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND|openFlags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if len(r.pending) > 64<<10 {
			r.pending = nil
		}
		return // as soon as the pod has a directory
	}
	if err != nil {
		return
	}
	defer f.Close()
	if _, err := f.Write(r.pending); err == nil {
		r.lines += bytes.Count(r.pending, []byte("\n"))
		r.pending = nil
	}
}

func (r *Recorder) rewrite() {
	var data []byte
	for _, e := range r.entries {
		line, err := json.Marshal(e)
		if err == nil {
			data = append(append(data, line...), '\n')
		}
	}
	if sys.WriteFileAtomic(r.path, data, 0o600, false) == nil {
		r.lines, r.pending = len(r.entries), nil
	}
}

// Entries returns what is recorded, in the order in which it ended.
func (r *Recorder) Entries() []client.FlightEntry {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.entries)
}

type key struct{}

type aim struct {
	recorder  *Recorder
	container string
}

// With aims what is recorded in ctx at a pod's recorder, and one of its
// containers ("": the pod itself).
func With(ctx context.Context, r *Recorder, container string) context.Context {
	return context.WithValue(ctx, key{}, aim{r, container})
}

// Begin begins something that takes time: a span, and an entry that is recorded
// with its error when the function that is returned ends it. The context is for
// what is part of it.
func Begin(ctx context.Context, kind, what string) (context.Context, func(error)) {
	a, _ := ctx.Value(key{}).(aim)
	if a.recorder == nil {
		return ctx, func(error) {}
	}
	ctx, span := a.recorder.tracer.Start(ctx, what, trace.WithAttributes(a.attributes(ctx)...))
	end := Watch(ctx, kind, what)
	return ctx, func(err error) {
		end(err)
		tracing.End(span, a.recorder.hide(err))
	}
}

func (a aim) attributes(ctx context.Context) (out []attribute.KeyValue) {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		out = append(out, a.recorder.pod...)
	}
	if a.container != "" {
		out = append(out, attribute.String("k8s.container.name", a.container))
	}
	return out
}

// Watch is Begin without a span.
func Watch(ctx context.Context, kind, what string) func(error) {
	return watch(ctx, kind, what, 0)
}

// Part is Watch for a part that mostly takes no time: it is recorded only if it
// took some.
func Part(ctx context.Context, kind, what string) func(error) {
	return watch(ctx, kind, what, 10*time.Millisecond)
}

func watch(ctx context.Context, kind, what string, atLeast time.Duration) func(error) {
	a, _ := ctx.Value(key{}).(aim)
	r := a.recorder
	if r == nil {
		return func(error) {}
	}
	e := &client.FlightEntry{At: time.Now(), Kind: kind, What: what, Container: a.container}
	r.mu.Lock()
	r.under = append(r.under, e)
	r.mu.Unlock()
	return func(err error) {
		done := *e
		done.Took = time.Since(e.At)
		if err = r.hide(err); err != nil {
			done.Error = short(err.Error())
		}
		r.mu.Lock()
		r.under = slices.DeleteFunc(r.under, func(x *client.FlightEntry) bool { return x == e })
		r.mu.Unlock()
		if done.Took >= atLeast {
			r.Add(done)
		}
	}
}

// UnderWay returns what has begun and not ended, in the order in which it began.
func (r *Recorder) UnderWay() (out []client.FlightEntry) {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.under {
		out = append(out, *e)
	}
	return out
}

// short cuts a text that would fill the file.
func short(s string) string {
	const most = 500
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
