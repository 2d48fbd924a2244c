package docker

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/status"
)

// How long work may take whose caller's deadline does not bound it any more.
const (
	runTimeout    = 4 * time.Minute
	createTimeout = 4 * time.Minute
	removeTimeout = 2 * time.Minute
)

// flights makes callers who ask for the same at the same time share one
// execution of it, which goes on when they leave. The zero value is ready.
type flights struct {
	mu    sync.Mutex
	byKey map[string]*flight
}

type flight struct {
	done chan struct{}
	id   string // id and err are set before done is closed
	err  error
}

// join runs work, or joins the execution of it that is under way for key.
func (r *Runtime) join(ctx context.Context, key string, timeout time.Duration, work func(context.Context) (string, error)) (string, error) {
	f := &r.flights
	f.mu.Lock()
	c := f.byKey[key]
	if c == nil {
		c = &flight{done: make(chan struct{})}
		if f.byKey == nil {
			f.byKey = map[string]*flight{}
		}
		f.byKey[key] = c
		r.worker.Go(func() {
			ctx, cancel := context.WithTimeout(r.life, timeout)
			defer cancel()
			c.id, c.err = work(ctx)
			f.mu.Lock()
			delete(f.byKey, key)
			f.mu.Unlock()
			close(c.done)
		})
	}
	f.mu.Unlock()
	select {
	case <-c.done:
		return c.id, c.err
	case <-ctx.Done():
		return "", status.FromContextError(ctx.Err()).Err()
	}
}

// pause waits for d, and tells whether ctx is still alive then.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
