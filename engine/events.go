package engine

import (
	"cmp"
	"context"
	"path/filepath"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/internal/event"
)

const (
	eventCreated = runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
	eventStarted = runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
	eventStopped = runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
	eventDeleted = runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
)

// ContainerEvents implements cri.Events.
func (e *Engine) ContainerEvents(ctx context.Context, ready func(), yield func(*runtimeapi.ContainerEventResponse) error) error {
	return e.events.Serve(ctx, ready, yield)
}

// openEvents makes the hub.
func (e *Engine) openEvents() (err error) {
	if e.eventMark, err = event.OpenMark(filepath.Join(e.cfg.RunDir, "events")); err != nil {
		return err
	}
	e.events = event.NewHub(e.eventMark)
	return nil
}

// sandboxEvent and containerEvent send an event, of something that happened at a
// time, with a picture of the pod as it is now. Whoever records a change sends
// its event before it lets anybody go on who waits for the change, so that
// events of one object keep their order.
func (e *Engine) sandboxEvent(s *sandbox, t runtimeapi.ContainerEventType, at time.Time) {
	e.sendEvent(s.id, s.id, t, at)
}

func (e *Engine) containerEvent(c *container, t runtimeapi.ContainerEventType, at time.Time) {
	e.sendEvent(c.id, c.sandboxID, t, at)
}

func (e *Engine) sendEvent(id, sandboxID string, t runtimeapi.ContainerEventType, at time.Time) {
	if !e.events.Wanted() {
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
	e.events.Send(ev, at)
}

// tellUntold sends what the records say has happened and the former engine may
// not have told: it was killed between the two. What it did not even record is
// found and told by reconcile.
func (e *Engine) tellUntold() {
	type life struct {
		id, sandboxID string
		what          runtimeapi.ContainerEventType
		at            time.Time
	}
	var all []life
	since := e.eventMark.Untold()
	if limit := time.Now().Add(-event.KeepFor); limit.After(since) {
		since = limit
	}
	add := func(id, sandboxID string, what runtimeapi.ContainerEventType, at time.Time) {
		if at.After(since) {
			all = append(all, life{id, sandboxID, what, at})
		}
	}
	for _, s := range e.allSandboxes() {
		if r := s.record(); r.Phase != sandboxCreating {
			add(s.id, s.id, eventCreated, r.ReadyAt)
			add(s.id, s.id, eventStarted, r.ReadyAt)
			add(s.id, s.id, eventStopped, r.StoppedAt)
		}
	}
	for _, c := range e.allContainers() {
		if r := c.record(); r.Phase != containerCreating {
			add(c.id, c.sandboxID, eventCreated, r.PreparedAt)
			add(c.id, c.sandboxID, eventStarted, r.StartedAt)
			add(c.id, c.sandboxID, eventStopped, r.FinishedAt)
		}
	}
	slices.SortFunc(all, func(a, b life) int {
		return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.id, b.id), cmp.Compare(a.what, b.what))
	})
	for _, l := range all {
		e.sendEvent(l.id, l.sandboxID, l.what, l.at)
	}
}
