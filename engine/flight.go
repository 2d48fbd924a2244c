package engine

import (
	"context"
	"crypto/sha256"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"podstead/cri"
	"podstead/cri/tracing"
)

// How long work may take when no caller's deadline bounds it any more.
const (
	runTimeout    = 4 * time.Minute
	createTimeout = 4 * time.Minute
	removeTimeout = 2 * time.Minute
)

// turn is a lock that is waited for under a context: it serialises what changes
// one object in the kernel. It is per object, so a stuck one blocks itself only.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

func (t turn) give() { <-t }

// call is one execution of an operation that callers wait for.
type call struct {
	done chan struct{}
	err  error // set before done is closed
}

// wait returns the call's error, or the caller's own end.
func (c *call) wait(ctx context.Context) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

// shared runs an operation on one object once at a time: callers that come
// while it is under way get its result. It goes on when callers leave. The zero
// value is ready.
type shared struct {
	mu  sync.Mutex
	cur *call
}

func (s *shared) do(ctx context.Context, e *Engine, timeout time.Duration, work func(context.Context) error) error {
	s.mu.Lock()
	c := s.cur
	if c == nil {
		c = &call{done: make(chan struct{})}
		s.cur = c
		life := tracing.With(e.life, ctx)
		e.worker.Go(func() {
			ctx, cancel := context.WithTimeout(life, timeout)
			defer cancel()
			c.err = work(ctx)
			s.mu.Lock()
			s.cur = nil
			s.mu.Unlock()
			close(c.done)
		})
	}
	s.mu.Unlock()
	return c.wait(ctx)
}

// fingerprint identifies a request, so that a retry can be told from another
// request for the same name.
type fingerprint [sha256.Size]byte

func fingerprintOf(m proto.Message) fingerprint {
	b, err := proto.MarshalOptions{Deterministic: true, AllowPartial: true}.Marshal(m)
	if err != nil {
		return fingerprint{} // only strings that are not UTF-8 fail; such requests equal each other
	}
	return sha256.Sum256(b)
}

// runs makes the creation of a named object happen once. A caller that comes
// while it is under way joins it; one that comes after a caller got the ID is
// told AlreadyExists; but if no caller was there to take the ID, the first that
// asks for the same again gets it. So no name is ever reserved by a request
// whose client has given up. The zero value is ready.
type runs struct {
	mu     sync.Mutex
	byName map[string]*run
}

type run struct {
	call
	of        fingerprint
	id        string
	delivered bool
}

func (r *runs) do(ctx context.Context, e *Engine, name string, of fingerprint, timeout time.Duration, create func(context.Context) (string, error)) (string, error) {
	r.mu.Lock()
	c, ok := r.byName[name]
	switch {
	case !ok:
		c = r.start(tracing.With(e.life, ctx), e, name, of, timeout, create)
	case c.of != of || c.delivered:
		r.mu.Unlock()
		return "", cri.Errorf(codes.AlreadyExists, "%s exists already%s", name, as(c.id))
	}
	r.mu.Unlock()
	if err := c.wait(ctx); err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if cri.Heard(ctx) {
		c.delivered = true
	}
	return c.id, nil
}

// start is called with r.mu held.
func (r *runs) start(life context.Context, e *Engine, name string, of fingerprint, timeout time.Duration, create func(context.Context) (string, error)) *run {
	if r.byName == nil {
		r.byName = map[string]*run{}
	}
	c := &run{call: call{done: make(chan struct{})}, of: of}
	r.byName[name] = c
	e.worker.Go(func() {
		ctx, cancel := context.WithTimeout(life, timeout)
		defer cancel()
		id, err := create(ctx)
		r.mu.Lock()
		c.id, c.err = id, err
		if err != nil {
			delete(r.byName, name)
		}
		r.mu.Unlock()
		close(c.done)
	})
	return c
}

// restore enters an object that was loaded from its record. Whether a caller
// ever got its ID is not known, so an equal request does.
func (r *runs) restore(name string, of fingerprint, id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byName == nil {
		r.byName = map[string]*run{}
	}
	c := &run{call: call{done: make(chan struct{})}, of: of, id: id}
	close(c.done)
	r.byName[name] = c
}

// forget frees the name of a removed object.
func (r *runs) forget(name, id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, ok := r.byName[name]; ok && c.id == id {
		delete(r.byName, name)
	}
}

func as(id string) string {
	if id == "" {
		return ""
	}
	return " as " + id
}
