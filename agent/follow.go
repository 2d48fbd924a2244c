package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/observe"
	"podstead/cri"
)

const (
	pollEvery  = time.Second      // for a runtime that has no events
	checkEvery = 2 * time.Minute  // beside events, in case one was lost
	retryAfter = 1 * time.Second  // after the runtime went away
	touchAfter = 30 * time.Second // bounds one list
)

// follow starts what tells the loop that the runtime has news.
func (a *Agent) follow(ctx context.Context) {
	a.wg.Go(func() {
		for ctx.Err() == nil {
			err := a.node.runtime.ContainerEvents(ctx,
				func() { a.tell(ctx, touch{}) },
				func(e *runtimeapi.ContainerEventResponse) error { return a.event(ctx, e) })
			if ctx.Err() != nil {
				return
			}
			if cri.Code(err) == codes.Unimplemented {
				a.cfg.Log.Info("the runtime has no events, it is asked every second")
				a.poll(ctx, pollEvery)
				return
			}
			a.cfg.Log.Warn("events of the runtime ended", "error", err)
			pause(ctx, retryAfter)
		}
	})
	a.wg.Go(func() { a.poll(ctx, checkEvery) })
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func (a *Agent) tell(ctx context.Context, t touch) {
	select {
	case a.touched <- t:
	case <-ctx.Done():
	}
}

func (a *Agent) event(ctx context.Context, e *runtimeapi.ContainerEventResponse) error {
	uid := e.GetPodSandboxStatus().GetMetadata().GetUid()
	if uid == "" && e.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT {
		return nil // of something that is gone; the worker that removed it knows
	}
	a.tell(ctx, touch{uid: uid})
	return ctx.Err()
}

// poll lists everything at that pace and tells what differs from last time.
func (a *Agent) poll(ctx context.Context, every time.Duration) {
	var last map[string]string
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		now, err := a.digests(ctx)
		if err == nil {
			for uid, sum := range now {
				if last != nil && last[uid] != sum {
					a.tell(ctx, touch{uid: uid})
				}
			}
			for uid := range last {
				if _, still := now[uid]; !still {
					a.tell(ctx, touch{uid: uid})
				}
			}
			if last == nil {
				a.tell(ctx, touch{})
			}
			a.tellOrphans(ctx, now)
			last = now
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// tellOrphans tells of pods that the runtime has and nobody looks after: it went
// on making something for an agent, or a worker, that had left.
func (a *Agent) tellOrphans(ctx context.Context, there map[string]string) {
	var found map[string]*corev1.Pod
	for uid := range there {
		if uid == "" || a.board.has(uid) {
			continue
		}
		if found == nil {
			found = a.orphans(ctx)
		}
		if pod := found[uid]; pod != nil {
			a.tell(ctx, touch{uid, pod})
		}
	}
}

// digests sums up the state of each pod, by UID.
func (a *Agent) digests(ctx context.Context) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, touchAfter)
	defer cancel()
	mine := map[string]string{observe.LabelAgent: a.node.request.AgentID}
	sandboxes, err := a.node.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{
		Filter: &runtimeapi.PodSandboxFilter{LabelSelector: mine}})
	if err != nil {
		return nil, err
	}
	containers, err := a.node.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{
		Filter: &runtimeapi.ContainerFilter{LabelSelector: mine}})
	if err != nil {
		return nil, err
	}
	states := map[string][]string{}
	add := func(uid, id string, state int32) {
		states[uid] = append(states[uid], fmt.Sprint(id, " ", state))
	}
	for _, s := range sandboxes.Items {
		add(s.Labels[observe.LabelPodUID], s.Id, int32(s.State))
	}
	for _, c := range containers.Containers {
		add(c.Labels[observe.LabelPodUID], c.Id, int32(c.State))
	}
	sums := map[string]string{}
	for uid, list := range states {
		slices.Sort(list) // a runtime lists in no order
		sums[uid] = strings.Join(list, "\n")
	}
	return sums, nil
}
