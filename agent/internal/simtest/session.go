package simtest

import (
	"context"
	"maps"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// Session is one agent's connection to the runtime. Cut ends what the agent
// hears and says, as its death does.
type Session struct {
	cri.Runtime // calls that no simulation expects panic
	w           *World
	once        sync.Once
	dead        chan struct{}
}

// Connect connects an agent.
func (w *World) Connect() *Session {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.agents++
	return &Session{w: w, dead: make(chan struct{})}
}

// Cut ends the connection.
func (s *Session) Cut() { s.once.Do(func() { close(s.dead) }) }

// fate is what becomes of a call.
type fate struct {
	refused       codes.Code // other than OK: nothing happens
	before, after time.Duration
	goesOn        bool // although the caller leaves
	lost          bool // the answer
}

func (w *World) fate(verb, object string) (f fate) {
	if !w.faulty {
		return f
	}
	f.goesOn = w.chance(60, "goes on", verb, object)
	switch n := w.roll(100, "fate", verb, object); {
	case n < 7:
		f.refused = []codes.Code{codes.Unavailable, codes.Internal, codes.Unknown}[w.roll(3, "code", verb, object)]
	case n < 12:
		f.lost = true
	case n < 22:
		f.before = w.span(5*time.Second, "before", verb, object)
	case n < 25: // longer than anybody waits
		f.before = w.span(6*time.Minute, "long before", verb, object)
	case n < 32:
		f.after = w.span(5*time.Second, "after", verb, object)
	}
	return f
}

// call makes one call: its effect, which runs under the lock of the world, may
// not happen, happen late when nobody waits any more, or be kept from the caller.
func (s *Session) call(ctx context.Context, verb, object string, effect func(late bool) error) error {
	return s.with(ctx, verb, object, effect, nil)
}

// with is call for verbs that then wait for something.
func (s *Session) with(ctx context.Context, verb, object string, effect func(late bool) error, wait func() error) error {
	w := s.w
	w.mu.Lock()
	f := w.fate(verb, object)
	w.changes++
	w.mu.Unlock()
	if !s.pause(ctx, f.before) {
		if f.goesOn {
			w.note1("%s %s goes on although its caller has left", verb, object)
			rest, boot := f.before/2, w.boots()
			go func() {
				time.Sleep(rest)
				w.mu.Lock()
				defer w.mu.Unlock()
				if w.up() && w.booted == boot {
					_ = effect(true)
				}
			}()
		}
		return s.left(ctx)
	}
	w.mu.Lock()
	err := error(nil)
	switch {
	case !w.up():
		err = cri.Errorf(codes.Unavailable, "the runtime is away")
	case f.refused != codes.OK:
		err = cri.Errorf(f.refused, "%s: by accident", verb)
	default:
		err = effect(false)
	}
	if w.faulty || err != nil || !strings.HasPrefix(verb, "Exec") {
		w.note("%s %s: %v", verb, object, err)
	}
	w.mu.Unlock()
	if err != nil {
		return err
	}
	if wait != nil {
		if err := wait(); err != nil {
			return err
		}
	}
	if !s.pause(ctx, f.after) {
		return s.left(ctx)
	}
	if f.lost {
		w.note1("answer to %s %s is lost", verb, object)
		return cri.Errorf(codes.Unavailable, "%s: connection lost", verb)
	}
	return nil
}

func (w *World) note1(format string, args ...any) { w.Note(format, args...) }

func (w *World) boots() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.booted
}

func (w *World) up() bool { return !time.Now().Before(w.down) }

// pause tells whether the caller is still there after d.
func (s *Session) pause(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		select {
		case <-s.dead:
			return false
		default:
			return ctx.Err() == nil
		}
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
	case <-s.dead:
	}
	return false
}

func (s *Session) left(ctx context.Context) error {
	if context.Cause(ctx) == context.DeadlineExceeded {
		return cri.Errorf(codes.DeadlineExceeded, "%v", ctx.Err())
	}
	return cri.Errorf(codes.Canceled, "caller has left")
}

// look makes a call that changes nothing.
func (s *Session) look(ctx context.Context, verb, object string, f func() error) error {
	w := s.w
	w.mu.Lock()
	// How often it looks at one instant is a matter of chance, hence the time.
	took, at := time.Duration(0), time.Now().UnixNano()
	if w.faulty && w.once(33, "slow look", verb, object, at) {
		took = time.Duration(at%3000) * time.Millisecond
	}
	w.mu.Unlock()
	if !s.pause(ctx, took) {
		return s.left(ctx)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.up() || w.faulty && w.once(33, "look", verb, object, time.Now().UnixNano()) {
		return cri.Errorf(codes.Unavailable, "%s: by accident", verb)
	}
	return f()
}

// watcher is somebody who listens to events.
type watcher struct {
	once sync.Once
	end  chan struct{}
	ch   chan *runtimeapi.ContainerEventResponse
}

func (x *watcher) cut() { x.once.Do(func() { close(x.end) }) }

// event tells of a container: now, late, twice or never.
func (w *World) event(c *container, kind runtimeapi.ContainerEventType) {
	e := &runtimeapi.ContainerEventResponse{ContainerId: c.id, ContainerEventType: kind,
		PodSandboxStatus: &runtimeapi.PodSandboxStatus{Id: c.sandbox.id, Metadata: c.sandbox.config.Metadata}}
	times, late := 1, time.Duration(0)
	if w.faulty {
		switch n := w.roll(100, "event", c.key()); {
		case n < 8:
			times = 0
		case n < 16:
			times = 2
		case n < 30:
			late = w.span(10*time.Second, "late", c.key())
		}
	}
	send := func() {
		for x := range maps.Keys(w.watchers) {
			select {
			case x.ch <- e:
			default:
				x.cut() // a real one ends the stream of who does not read
			}
		}
	}
	if late > 0 {
		time.AfterFunc(late, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			send()
		})
		return
	}
	for range times {
		send()
	}
}

// ContainerEvents streams events until the runtime or the caller goes away.
func (s *Session) ContainerEvents(ctx context.Context, ready func(), yield func(*runtimeapi.ContainerEventResponse) error) error {
	w := s.w
	if w.quirks.noEvents {
		return cri.Errorf(codes.Unimplemented, "no events")
	}
	x := &watcher{end: make(chan struct{}), ch: make(chan *runtimeapi.ContainerEventResponse, 1000)}
	w.mu.Lock()
	if !w.up() {
		w.mu.Unlock()
		return cri.Errorf(codes.Unavailable, "the runtime is away")
	}
	w.watchers[x] = true
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.watchers, x)
	}()
	if ready != nil {
		ready()
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.dead:
			return cri.Errorf(codes.Unavailable, "cut")
		case <-x.end:
			return cri.Errorf(codes.Unavailable, "the stream ended")
		case e := <-x.ch:
			if err := yield(e); err != nil {
				return err
			}
		}
	}
}
