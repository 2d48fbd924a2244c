package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/internal/session"
)

// eventTypes are the events of Docker's that are events of the CRI.
var eventTypes = map[events.Action]runtimeapi.ContainerEventType{
	events.ActionCreate:  runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT,
	events.ActionStart:   runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT,
	events.ActionDie:     runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT,
	events.ActionDestroy: runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT,
}

// ContainerEvents implements cri.Events on a stream of Docker's for each reader.
func (r *Runtime) ContainerEvents(ctx context.Context, ready func(), yield func(*runtimeapi.ContainerEventResponse) error) error {
	ctx, cancel := session.Until(ctx, r.life)
	defer cancel()
	stream := r.subscribe(ctx)
	if ready != nil {
		ready()
	}
	pods := map[string]*runtimeapi.PodSandboxStatus{} // as they were last seen
	last := int64(0)
	for {
		select {
		case m := <-stream.Messages:
			ev := r.event(ctx, &m, pods)
			ev.CreatedAt = max(ev.CreatedAt, last) // Docker's times go back now and then
			last = ev.CreatedAt
			if err := yield(ev); err != nil {
				return err
			}
		case err := <-stream.Err:
			if r.life.Err() != nil || err == nil || errors.Is(err, io.EOF) {
				return cri.Errorf(codes.Unavailable, "Docker's events have ended: list again")
			}
			if ctx.Err() != nil {
				return status.FromContextError(ctx.Err()).Err()
			}
			return failed(err, "read Docker's events")
		}
	}
}

// subscribe asks for the events of our objects from now on. Docker answers
// before it has subscribed the reader; "since" closes that gap.
func (r *Runtime) subscribe(ctx context.Context) client.EventsResult {
	f := make(client.Filters).Add("type", string(events.ContainerEventType)).Add("label", labelRecord)
	for action := range eventTypes {
		f.Add("event", string(action))
	}
	now := time.Now()
	return r.api().Events(ctx, client.EventsListOptions{
		Since: fmt.Sprintf("%d.%09d", now.Unix(), now.Nanosecond()), Filters: f,
	})
}

// event translates an event, with a picture of the pod as it is now, or as it
// was last seen if it is gone by now.
func (r *Runtime) event(ctx context.Context, m *events.Message, pods map[string]*runtimeapi.PodSandboxStatus) *runtimeapi.ContainerEventResponse {
	ev := &runtimeapi.ContainerEventResponse{
		ContainerId: m.Actor.ID, ContainerEventType: eventTypes[m.Action], CreatedAt: m.TimeNano,
	}
	sandboxID := m.Actor.Attributes[labelSandbox]
	if m.Actor.Attributes[labelType] == typeSandbox {
		sandboxID = m.Actor.ID
	}
	// What cannot be found out is left out: the kubelet then lists.
	p, err := r.pod(ctx, sandboxID)
	switch last := pods[sandboxID]; {
	case err == nil && p != nil:
		ev.PodSandboxStatus = r.podStatus(p)
		pods[sandboxID] = ev.PodSandboxStatus
	case last != nil:
		ev.PodSandboxStatus = proto.CloneOf(last)
		ev.PodSandboxStatus.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	}
	if m.Action == events.ActionDestroy && m.Actor.ID == sandboxID {
		delete(pods, sandboxID)
	}
	ev.ContainersStatuses, _ = r.ctrStatuses(ctx, sandboxID)
	return ev
}

// completeLogs works through a stream of events until it ends.
func (r *Runtime) completeLogs(ctx context.Context, stream client.EventsResult) {
	for {
		select {
		case m := <-stream.Messages:
			if m.Action != events.ActionDie || m.Actor.Attributes[labelType] != typeContainer {
				continue
			}
			r.worker.Go(func() {
				if c, err := r.ctr(ctx, m.Actor.ID); err == nil && c != nil {
					r.logs.ended(ctx, c)
				}
			})
		case <-stream.Err:
			return
		}
	}
}
