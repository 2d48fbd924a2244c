package conformance

import (
	"context"
	"fmt"
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
		want := wholeLife()
		for what, id := range map[string]string{"container": c.id, "sandbox": p.id} {
			eventually(t, what+" has all its events", func() bool { return len(w.of(id)) >= len(want) })
			if got := w.types(id); !slices.Equal(got, want) {
				t.Errorf("%s: events are %v", what, got)
			}
		}
		for _, e := range append(w.of(c.id), w.of(p.id)...) {
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
	{"in order, each once", "GetContainerEvents", func(t *testing.T, s *suite) {
		w := s.watch(t)
		p := s.pod(t)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				c := p.sh(t, "true") // ends at once
				c.remove(t)
			})
		}
		wg.Wait()
		p.stop(t)
		s.removePod(t, p.id)
		eventually(t, "the pod's end is told", func() bool { return len(w.of(p.id)) >= 4 })
		seen, last := map[string][]runtimeapi.ContainerEventType{}, int64(0)
		for _, e := range w.all() {
			if e.GetPodSandboxStatus().GetId() != p.id {
				continue // of another test
			}
			if seen[e.GetContainerId()] = append(seen[e.GetContainerId()], e.GetContainerEventType()); e.GetCreatedAt() < last {
				t.Errorf("an event of %d comes after one of %d", e.GetCreatedAt(), last)
			}
			last = e.GetCreatedAt()
		}
		if len(seen) != 11 {
			t.Errorf("%d containers and pods have events, want 11", len(seen))
		}
		for id, types := range seen {
			if !slices.Equal(types, wholeLife()) {
				t.Errorf("events of %s are %v", id, types)
			}
		}
	}},
	{"none between subscription and list", "GetContainerEvents", func(t *testing.T, s *suite) {
		p := s.pod(t)
		made := make(chan string, 8)
		var wg sync.WaitGroup
		for range cap(made) {
			wg.Go(func() { made <- p.create(t, p.script(fmt.Sprintf("c%d", p.n.Add(1)), "true")).id })
		}
		w := s.watch(t)
		known := map[string]bool{}
		r, err := s.Runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: p.id}})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range r.GetContainers() {
			known[c.GetId()] = true
		}
		wg.Wait()
		close(made)
		for id := range made {
			eventually(t, "each container is listed or told of", func() bool { return known[id] || len(w.of(id)) > 0 })
		}
	}},
	{"one who does not read holds nobody up", "GetContainerEvents", func(t *testing.T, s *suite) {
		ctx, cancel := context.WithCancel(t.Context())
		ready, ended := make(chan struct{}), make(chan error, 1)
		go func() {
			ended <- s.Runtime.ContainerEvents(ctx, func() { close(ready) }, func(*runtimeapi.ContainerEventResponse) error {
				<-ctx.Done()
				return ctx.Err()
			})
		}()
		defer func() { cancel(); <-ended }()
		select {
		case <-ready:
		case err := <-ended:
			ended <- err
			t.Fatal(err)
		}
		w := s.watch(t)
		for range 3 {
			p := s.pod(t)
			c := p.sh(t, "true")
			eventually(t, "others hear", func() bool { return len(w.of(c.id)) >= 3 })
		}
	}},
	{"of an OOM kill", "GetContainerEvents ContainerStatus.reason", func(t *testing.T, s *suite) {
		w := s.watch(t)
		c := s.pod(t).sh(t, "dd if=/dev/zero of=/dev/null bs=100M count=1; exit $?", limited(16*mebibyte))
		eventually(t, "its end is told", func() bool { return len(w.of(c.id)) >= 3 })
		for _, status := range w.of(c.id)[2].GetContainersStatuses() {
			if status.GetId() == c.id && status.GetReason() != "OOMKilled" {
				t.Errorf("the end's event has reason %q, exit code %d, message %q", status.GetReason(), status.GetExitCode(), status.GetMessage())
			}
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

// wholeLife is what happens to each container and sandbox, once.
func wholeLife() []runtimeapi.ContainerEventType {
	return []runtimeapi.ContainerEventType{
		runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT,
		runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT,
		runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT,
		runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT,
	}
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

// all returns the events so far.
func (w *watch) all() []*runtimeapi.ContainerEventResponse {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events)
}

// of returns the events of one container or sandbox.
func (w *watch) of(id string) []*runtimeapi.ContainerEventResponse {
	var of []*runtimeapi.ContainerEventResponse
	for _, e := range w.all() {
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
