package engine

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxRecent is how many warnings are kept for Status.
const maxRecent = 50

// recent keeps the last warnings and errors of the engine's log, so that a
// person who asks for the status needs no other place to look. The zero value is
// ready.
type recent struct {
	mu   sync.Mutex
	last []notice // oldest first
}

// notice is a line of the log.
type notice struct {
	Time    time.Time `json:"time"`
	Level   string    `json:"level"`
	Message string    `json:"message"`
}

func (r *recent) add(n notice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.last) == maxRecent {
		r.last = slices.Delete(r.last, 0, 1)
	}
	r.last = append(r.last, n)
}

func (r *recent) list() []notice {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.last)
}

// watch returns a handler that also hands warnings to r.
func (r *recent) watch(h slog.Handler) slog.Handler { return &watched{Handler: h, to: r} }

type watched struct {
	slog.Handler
	to    *recent
	known []slog.Attr
}

// Enabled lets warnings through that the other handler does not want.
func (w *watched) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn || w.Handler.Enabled(ctx, l)
}

func (w *watched) Handle(ctx context.Context, rec slog.Record) error {
	if rec.Level >= slog.LevelWarn {
		var b strings.Builder
		b.WriteString(rec.Message)
		write := func(a slog.Attr) bool {
			b.WriteString(" " + a.String())
			return true
		}
		for _, a := range w.known {
			write(a)
		}
		rec.Attrs(write)
		w.to.add(notice{rec.Time, rec.Level.String(), b.String()})
	}
	if !w.Handler.Enabled(ctx, rec.Level) {
		return nil
	}
	return w.Handler.Handle(ctx, rec)
}

func (w *watched) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &watched{w.Handler.WithAttrs(attrs), w.to, slices.Concat(w.known, attrs)}
}

// WithGroup is for the other handler: the engine's log has no groups.
func (w *watched) WithGroup(name string) slog.Handler {
	return &watched{w.Handler.WithGroup(name), w.to, w.known}
}
