package engine

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// eventBacklog is how far a reader of events may fall behind. One that falls
// further is told so and must list anew; the engine never waits for it.
const eventBacklog = 1024

// hub gives every event to every reader. The zero value is ready.
type hub struct {
	mu      sync.Mutex
	readers map[*reader]bool
	closed  bool
}

type reader struct {
	events  chan *runtimeapi.ContainerEventResponse
	overrun bool // guarded by hub.mu; events is closed then
}

// ContainerEvents implements cri.Events.
func (e *Engine) ContainerEvents(ctx context.Context, ready func(), yield func(*runtimeapi.ContainerEventResponse) error) error {
	r := e.events.join()
	defer e.events.leave(r)
	if ready != nil {
		ready()
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case ev, ok := <-r.events:
			if !ok {
				return e.events.why(r)
			}
			if err := yield(ev); err != nil {
				return err
			}
		}
	}
}

func (h *hub) join() *reader {
	r := &reader{events: make(chan *runtimeapi.ContainerEventResponse, eventBacklog)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		close(r.events)
		return r
	}
	if h.readers == nil {
		h.readers = map[*reader]bool{}
	}
	h.readers[r] = true
	return r
}

func (h *hub) leave(r *reader) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.readers, r)
}

func (h *hub) why(r *reader) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r.overrun {
		return cri.Errorf(codes.ResourceExhausted, "the reader of events is more than %d behind: list again", eventBacklog)
	}
	return cri.Errorf(codes.Unavailable, "the engine is stopping")
}

// heard tells whether anybody reads: an event need not be made otherwise.
func (h *hub) heard() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.readers) > 0
}

func (h *hub) send(ev *runtimeapi.ContainerEventResponse) {
	if ev.CreatedAt == 0 {
		ev.CreatedAt = time.Now().UnixNano()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for r := range h.readers {
		own := ev
		if len(h.readers) > 1 {
			own = proto.CloneOf(ev) // what a reader gets is its own
		}
		select {
		case r.events <- own:
		default:
			r.overrun = true
			close(r.events)
			delete(h.readers, r)
		}
	}
}

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for r := range h.readers {
		close(r.events)
		delete(h.readers, r)
	}
}

// sandboxEvent and containerEvent send an event with a picture of the pod as it
// is now.
func (e *Engine) sandboxEvent(s *sandbox, t runtimeapi.ContainerEventType) {
	e.sendEvent(s.id, s.id, t)
}

func (e *Engine) containerEvent(c *container, t runtimeapi.ContainerEventType) {
	e.sendEvent(c.id, c.sandboxID, t)
}

func (e *Engine) sendEvent(id, sandboxID string, t runtimeapi.ContainerEventType) {
	if !e.events.heard() {
		return
	}
	ev := &runtimeapi.ContainerEventResponse{
		ContainerId: id, ContainerEventType: t,
		ContainersStatuses: e.containerStatuses(sandboxID),
	}
	if s, _ := e.sandbox(sandboxID); s != nil {
		rec := s.record()
		ev.PodSandboxStatus = sandboxStatus(&rec)
	}
	e.events.send(ev)
}
