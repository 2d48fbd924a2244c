// Package event hands what happens to pods and containers to all who listen.
// It is called by the engine, and by engine/docker.
//
//   - A listener gets every event from the moment it joined, each once, in order,
//     with times that never go back. Who lists after it has joined has a complete
//     picture: the lists are the snapshot for one that comes late.
//   - For the first minutes of an engine a listener that joins also gets what
//     happened since the engine began, since nobody could listen between two
//     engines: what was found to have happened meanwhile, and what the former one
//     may have had no time to tell.
//   - One that does not listen is let go when it is too far behind, by number or
//     by size, and is told so. Nobody waits for it.
//
// What has been told is remembered across a crash by a time in a file, see Mark.
package event

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// Event is the CRI's.
type Event = runtimeapi.ContainerEventResponse

// How far a listener may be behind.
const (
	MaxBehind      = 1024
	maxBehindBytes = 8 << 20
)

// KeepFor is for how long what happened since the engine began is kept for
// listeners to come.
const KeepFor = 5 * time.Minute

// Why a listener gets no more events.
var (
	ErrBehind = errors.New("too far behind")
	ErrClosed = errors.New("closed")
)

// Hub takes events and has listeners.
type Hub struct {
	mark *Mark

	mu        sync.Mutex
	listeners map[*Listener]bool
	closed    bool
	last      int64 // time of the last event
	// opening is what happened since the start, empty when that is long ago. It is
	// half as long as a listener may be behind: one that joins is not to be let go
	// for what it is given at once.
	opening queue
	until   time.Time
}

// NewHub makes one. mark may be nil.
func NewHub(mark *Mark) *Hub {
	return &Hub{mark: mark, listeners: map[*Listener]bool{}, until: time.Now().Add(KeepFor)}
}

// Wanted tells whether an event would reach anybody, now or later: it need not
// be made otherwise.
func (h *Hub) Wanted() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.listeners) > 0 || h.keeping()
}

// keeping tells whether events are kept, and ends that when it is time.
func (h *Hub) keeping() bool {
	if time.Now().After(h.until) {
		h.opening = queue{}
		return false
	}
	return !h.closed
}

// Send gives an event, that is not changed any more, to all listeners. at is
// when it happened.
func (h *Hub) Send(ev *Event, at time.Time) {
	item := queued{ev, proto.Size(ev)}
	h.mu.Lock()
	defer h.mu.Unlock()
	ev.CreatedAt = max(at.UnixNano(), h.last+1)
	h.last = ev.CreatedAt
	if h.keeping() {
		for !h.opening.fits(item, 2) {
			h.opening.shift()
		}
		h.opening.push(item)
	}
	for l := range h.listeners {
		l.push(item)
	}
}

// Join adds a listener, which must leave.
func (h *Hub) Join() *Listener {
	l := &Listener{hub: h, news: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		l.end(ErrClosed)
		return l
	}
	if h.keeping() {
		for _, item := range h.opening.items {
			l.push(item)
		}
	}
	h.listeners[l] = true
	return l
}

// Close ends all listeners.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed, h.opening = true, queue{}
	for l := range h.listeners {
		l.end(ErrClosed)
	}
}

// Serve implements cri.Events for one listener. One who comes within the first
// minutes of the engine first gets what has happened since the former one ended.
func (h *Hub) Serve(ctx context.Context, ready func(), yield func(*Event) error) error {
	l := h.Join()
	defer l.Leave()
	if ready != nil {
		ready()
	}
	for {
		ev, err := l.Next(ctx)
		switch {
		case errors.Is(err, ErrBehind):
			return cri.Errorf(codes.ResourceExhausted, "the reader of events is too far behind (%d at most): list again", MaxBehind)
		case errors.Is(err, ErrClosed):
			return cri.Errorf(codes.Unavailable, "the engine is stopping")
		case err != nil:
			return err
		}
		if err := yield(ev); err != nil {
			return err
		}
		h.mark.move(ev.CreatedAt)
	}
}

// Listener gets events.
type Listener struct {
	hub  *Hub
	news chan struct{} // has an element when there is something to see

	// guarded by hub.mu
	queue queue
	over  error
}

// push is called with hub.mu held.
func (l *Listener) push(item queued) {
	switch {
	case l.over != nil:
	case !l.queue.fits(item, 1):
		l.end(ErrBehind)
	default:
		l.queue.push(item)
		l.wake()
	}
}

// end is called with hub.mu held.
func (l *Listener) end(why error) {
	l.queue, l.over = queue{}, why
	delete(l.hub.listeners, l)
	l.wake()
}

func (l *Listener) wake() {
	select {
	case l.news <- struct{}{}:
	default:
	}
}

// Next waits for the next event, which is the caller's own. Its error is
// ErrBehind, ErrClosed or the context's.
func (l *Listener) Next(ctx context.Context) (*Event, error) {
	for {
		if ev, err := l.take(); ev != nil || err != nil {
			return ev, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-l.news:
		}
	}
}

func (l *Listener) take() (*Event, error) {
	l.hub.mu.Lock()
	over, empty := l.over, len(l.queue.items) == 0
	var item queued
	if over == nil && !empty {
		item = l.queue.shift()
	}
	l.hub.mu.Unlock()
	if item.ev == nil {
		return nil, over
	}
	return proto.CloneOf(item.ev), nil
}

// Leave removes the listener.
func (l *Listener) Leave() {
	l.hub.mu.Lock()
	defer l.hub.mu.Unlock()
	l.end(ErrClosed)
}

// queue is bounded by number and by size.
type queue struct {
	items []queued
	bytes int
}

type queued struct {
	ev   *Event
	size int
}

// fits tells whether an item fits into a part of the bound, 1 being all of it.
func (q *queue) fits(item queued, part int) bool {
	return len(q.items) == 0 || len(q.items) < MaxBehind/part && q.bytes+item.size <= maxBehindBytes/part
}

func (q *queue) push(item queued) {
	q.items = append(q.items, item)
	q.bytes += item.size
}

func (q *queue) shift() queued {
	item := q.items[0]
	q.items[0] = queued{} // for the collector
	q.items = q.items[1:]
	q.bytes -= item.size
	return item
}
