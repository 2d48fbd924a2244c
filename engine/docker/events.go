package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/internal/event"
)

// eventTypes are the events of Docker's that are events of the CRI.
var eventTypes = map[events.Action]runtimeapi.ContainerEventType{
	events.ActionCreate:  runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT,
	events.ActionStart:   runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT,
	events.ActionDie:     runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT,
	events.ActionDestroy: runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT,
}

// ContainerEvents implements cri.Events.
func (r *Runtime) ContainerEvents(ctx context.Context, ready func(), yield func(*runtimeapi.ContainerEventResponse) error) error {
	return r.events.Serve(ctx, ready, yield)
}

// happening is an event without a picture of the pod. Each happens once to an
// object.
type happening struct {
	id, sandboxID string
	what          runtimeapi.ContainerEventType
	at            time.Time
	pod           *sandboxRecord // if it happened to a sandbox
}

func (h *happening) key() string { return fmt.Sprint(h.id, h.what) }

// teller turns what happens into events, for one goroutine.
type teller struct {
	r    *Runtime
	upTo time.Time // all before has been told
	pods map[string]*runtimeapi.PodSandboxStatus
	told map[string]time.Time // by key: what may be heard of twice
}

func newTeller(r *Runtime, upTo time.Time) *teller {
	return &teller{r: r, upTo: upTo, pods: map[string]*runtimeapi.PodSandboxStatus{}, told: map[string]time.Time{}}
}

// overlap is how much before the end of what was told the next look begins:
// Docker gives an event its time a moment before anybody can see it.
const overlap = 5 * time.Second

// follow tells what happens from now on, after what has happened while nobody
// looked, and completes the logs of containers that end, until Docker's events
// do.
func (t *teller) follow(ctx context.Context) error {
	now := time.Now()
	missed, err := t.missed(ctx, now)
	if err != nil {
		return err
	}
	for _, h := range missed {
		t.tell(ctx, h)
	}
	// Docker answers before it has subscribed the reader: it is to begin with
	// what was before.
	stream := t.r.subscribe(ctx, now.Add(-overlap), time.Time{})
	t.upTo = now
	if err := t.r.resumeLogs(ctx); err != nil {
		return err
	}
	for {
		select {
		case m := <-stream.Messages:
			if m.Action == events.ActionDie && m.Actor.Attributes[labelType] == typeContainer {
				t.r.completeLog(m.Actor.ID)
			}
			t.tell(ctx, happened(&m))
		case err := <-stream.Err:
			return err
		}
	}
}

// missed is what has happened since the last time somebody looked, as Docker
// remembers it, which it does until it ends itself, and as can be seen of what
// is there.
func (t *teller) missed(ctx context.Context, now time.Time) ([]happening, error) {
	since := t.upTo.Add(-overlap)
	if limit := now.Add(-event.KeepFor); since.Before(limit) {
		since = limit
	}
	var all []happening
	known := map[string]bool{}
	add := func(h happening) {
		if h.at.After(t.upTo) && !known[h.key()] {
			known[h.key()] = true
			all = append(all, h)
		}
	}
	stream := t.r.subscribe(ctx, since, now)
	for open := true; open; {
		select {
		case m := <-stream.Messages:
			add(happened(&m))
		case err := <-stream.Err:
			if err != nil && !errors.Is(err, io.EOF) {
				return nil, failed(err, "read Docker's events")
			}
			open = false
		}
	}
	pods, err := t.r.pods(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range pods {
		if seen, err := t.r.pod(ctx, p.id); err == nil && seen != nil {
			lived(happening{id: p.id, sandboxID: p.id, pod: &p.rec}, p.rec.CreatedAt, seen.state.StartedAt, seen.state.FinishedAt, add)
		}
	}
	ctrs, err := t.r.ctrs(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, c := range ctrs {
		if seen, err := t.r.ctr(ctx, c.id); err == nil && seen != nil {
			lived(happening{id: c.id, sandboxID: c.rec.SandboxID}, c.rec.CreatedAt, seen.state.StartedAt, seen.state.FinishedAt, add)
		}
	}
	slices.SortFunc(all, func(a, b happening) int {
		return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.id, b.id), cmp.Compare(a.what, b.what))
	})
	return all, nil
}

// lived adds what happened to an object of which only the state is seen.
func lived(h happening, created int64, started, finished string, add func(happening)) {
	for what, at := range map[runtimeapi.ContainerEventType]int64{
		runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT: created,
		runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT: nanoseconds(started),
		runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT: nanoseconds(finished),
	} {
		if at != 0 {
			h.what, h.at = what, time.Unix(0, at)
			add(h)
		}
	}
}

// subscribe asks for the events of our objects from a time on, until another if
// that is not zero.
func (r *Runtime) subscribe(ctx context.Context, since, until time.Time) client.EventsResult {
	f := make(client.Filters).Add("type", string(events.ContainerEventType)).Add("label", labelRecord)
	for action := range eventTypes {
		f.Add("event", string(action))
	}
	stamp := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond())
	}
	return r.api().Events(ctx, client.EventsListOptions{Since: stamp(since), Until: stamp(until), Filters: f})
}

// happened translates an event.
func happened(m *events.Message) happening {
	h := happening{id: m.Actor.ID, sandboxID: m.Actor.Attributes[labelSandbox], what: eventTypes[m.Action], at: time.Unix(0, m.TimeNano)}
	var rec sandboxRecord
	if m.Actor.Attributes[labelType] == typeSandbox {
		h.sandboxID = h.id
		if decodeRecord(m.Actor.Attributes, &rec) == nil {
			h.pod = &rec
		}
	}
	return h
}

// tell sends an event, with a picture of the pod as it is now, or as it was last
// seen if it is gone by now.
func (t *teller) tell(ctx context.Context, h happening) {
	if _, twice := t.told[h.key()]; twice {
		return
	}
	for key, at := range t.told {
		if time.Since(at) > 2*overlap {
			delete(t.told, key)
		}
	}
	t.told[h.key()] = time.Now()
	if h.at.After(t.upTo) {
		t.upTo = h.at
	}
	if !t.r.events.Wanted() {
		return
	}
	ev := &runtimeapi.ContainerEventResponse{ContainerId: h.id, ContainerEventType: h.what, PodSandboxStatus: t.picture(ctx, &h)}
	// What cannot be found out is left out: the kubelet then lists.
	ev.ContainersStatuses, _ = t.r.ctrStatuses(ctx, h.sandboxID)
	t.r.events.Send(ev, h.at)
}

func (t *teller) picture(ctx context.Context, h *happening) *runtimeapi.PodSandboxStatus {
	p, err := t.r.pod(ctx, h.sandboxID)
	if err == nil && p != nil {
		st := t.r.podStatus(p)
		t.pods[h.sandboxID] = st
		return proto.CloneOf(st)
	}
	st := t.pods[h.sandboxID]
	if st == nil && h.pod != nil {
		st = t.r.podStatus(&sandbox{id: h.id, rec: *h.pod})
	}
	if h.id == h.sandboxID && h.what == runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT {
		delete(t.pods, h.sandboxID)
	}
	if st != nil {
		st = proto.CloneOf(st)
		st.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	}
	return st
}

// completeLog completes the log of a container that has ended.
func (r *Runtime) completeLog(id string) {
	r.worker.Go(func() {
		if c, err := r.ctr(r.life, id); err == nil && c != nil {
			r.logs.ended(r.life, c)
		}
	})
}
