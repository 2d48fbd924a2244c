package conformance

import (
	"context"
	"slices"
	"sync"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var eventTests = []test{
	{"of a life", "GetContainerEvents ContainerEventResponse.*", func(t *testing.T, s *suite) {
		w := s.watch(t)
		p := s.pod(t)
		c := p.sh(t, "exit 3")
		c.exited(t)
		p.stop(t)
		s.removePod(t, p.id)
		want := []runtimeapi.ContainerEventType{
			runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT,
			runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT,
			runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT,
			runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT,
		}
		for what, id := range map[string]string{"container": c.id, "sandbox": p.id} {
			eventually(t, what+" has all its events", func() bool { return len(w.of(id)) >= len(want) })
			if got := w.types(id); !slices.Equal(got, want) {
				t.Errorf("%s: events are %v", what, got)
			}
		}
		for _, e := range w.of(c.id)[:3] {
			if e.GetPodSandboxStatus().GetId() != p.id || e.GetCreatedAt() == 0 {
				t.Errorf("event has sandbox status %v, time %d", e.GetPodSandboxStatus(), e.GetCreatedAt())
			}
		}
		stopped := w.of(c.id)[2]
		i := slices.IndexFunc(stopped.GetContainersStatuses(), func(status *runtimeapi.ContainerStatus) bool { return status.GetId() == c.id })
		if i < 0 || stopped.GetContainersStatuses()[i].GetExitCode() != 3 {
			t.Errorf("the exit's event has statuses %v", stopped.GetContainersStatuses())
		}
	}},
	{"to every subscriber", "GetContainerEvents", func(t *testing.T, s *suite) {
		a, b := s.watch(t), s.watch(t)
		p := s.pod(t)
		for _, w := range []*watch{a, b} {
			eventually(t, "the sandbox's start is told", func() bool { return len(w.of(p.id)) >= 2 })
		}
	}},
}

// watch is what a subscriber has seen.
type watch struct {
	mu     sync.Mutex
	events []*runtimeapi.ContainerEventResponse
}

// watch subscribes until the test ends.
func (s *suite) watch(t *testing.T) *watch {
	t.Helper()
	w := &watch{}
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- s.Runtime.ContainerEvents(ctx, func() { close(ready) }, func(e *runtimeapi.ContainerEventResponse) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, e)
			return nil
		})
	}()
	select {
	case <-ready:
	case err := <-ended:
		cancel()
		t.Fatalf("subscribe to events: %v", err)
	}
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return w
}

// of returns the events of one container or sandbox.
func (w *watch) of(id string) []*runtimeapi.ContainerEventResponse {
	w.mu.Lock()
	defer w.mu.Unlock()
	var of []*runtimeapi.ContainerEventResponse
	for _, e := range w.events {
		if e.GetContainerId() == id {
			of = append(of, e)
		}
	}
	return of
}

func (w *watch) types(id string) []runtimeapi.ContainerEventType {
	var types []runtimeapi.ContainerEventType
	for _, e := range w.of(id) {
		types = append(types, e.GetContainerEventType())
	}
	return types
}
