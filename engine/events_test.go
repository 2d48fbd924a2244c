package engine

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/supervisor"
	"podstead/sys"
)

// listener collects events of one stream.
type listener struct {
	mu     sync.Mutex
	events []*runtimeapi.ContainerEventResponse
	stop   func()
}

// listen opens a stream, which ends with the engine.
func (n *node) listen() *listener {
	n.t.Helper()
	l := &listener{}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan struct{})
	e := n.Engine
	go func() {
		defer close(done)
		e.ContainerEvents(ctx, func() { close(ready) }, func(ev *runtimeapi.ContainerEventResponse) error {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.events = append(l.events, ev)
			return nil
		})
	}()
	<-ready
	l.stop = sync.OnceFunc(func() { cancel(); <-done })
	n.t.Cleanup(l.stop)
	return l
}

// identity is what tells an event from others.
func identity(ev *runtimeapi.ContainerEventResponse) string {
	kind := strings.TrimSuffix(strings.TrimPrefix(ev.ContainerEventType.String(), "CONTAINER_"), "_EVENT")
	return fmt.Sprintf("%s %s at %d", ev.ContainerId, strings.ToLower(kind), ev.CreatedAt)
}

// of lists the kinds of one object's events.
func (l *listener) of(id string) []string {
	var kinds []string
	for _, ev := range l.all() {
		if ev.ContainerId == id {
			kinds = append(kinds, strings.Fields(identity(ev))[1])
		}
	}
	return kinds
}

func (l *listener) all() []*runtimeapi.ContainerEventResponse {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events)
}

// TestEventsOfTheTimeBetween ends a container while no engine runs: whoever
// comes back is told, and of the rest only what it can tell to be a repetition.
func TestEventsOfTheTimeBetween(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	l := n.listen()
	pod, lost := n.run(n.pod()), n.run(n.pod())
	stays := n.ready(n.begin(pod, n.script(forever)))
	ends := n.ready(n.begin(pod, n.script(`echo ready; while [ ! -e /stop ]; do sleep 0.01; done; exit 7`)))
	eventually(t, "the starts are told", func() bool { return len(l.of(stays)) == 2 && len(l.of(ends)) == 2 })
	if err := n.Engine.Close(); err != nil {
		t.Fatal(err)
	}
	l.stop()
	told := map[string]bool{}
	for _, ev := range l.all() {
		told[identity(ev)] = true
	}
	p, err := n.client.Get(ctx, ends)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/root/stop", p.Pid), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process has ended", func() bool {
		p, err = n.client.Get(ctx, ends)
		return err == nil && p.State == supervisor.Exited
	})
	if err := sys.ReleaseNamespace(n.namespacePath(lost, sys.NetNamespace)); err != nil {
		t.Fatal(err)
	}
	n.start()

	for name, l := range map[string]*listener{"first": n.listen(), "second": n.listen()} {
		eventually(t, "both ends are told", func() bool {
			return slices.Contains(l.of(ends), "stopped") && slices.Contains(l.of(lost), "stopped")
		})
		fresh, seen := []string{}, map[string]bool{}
		for _, ev := range l.all() {
			id := identity(ev)
			if seen[id] {
				t.Errorf("%s stream: %s twice", name, id)
			}
			if seen[id] = true; !told[id] {
				fresh = append(fresh, strings.Join(strings.Fields(id)[:2], " "))
			}
		}
		slices.Sort(fresh)
		want := []string{ends + " stopped", lost + " stopped"}
		slices.Sort(want)
		if !slices.Equal(fresh, want) {
			t.Errorf("%s stream: told for the first time: %q, want %q", name, fresh, want)
		}
	}
	l = n.listen()
	for _, ev := range l.all() {
		if ev.ContainerId == ends && ev.ContainerEventType == eventStopped {
			i := slices.IndexFunc(ev.ContainersStatuses, func(s *runtimeapi.ContainerStatus) bool { return s.Id == ends })
			if i < 0 || ev.ContainersStatuses[i].ExitCode != 7 || ev.PodSandboxStatus.GetId() != pod {
				t.Errorf("the end's event is %v", ev)
			}
			if at := time.Unix(0, ev.CreatedAt); at.Before(p.ExitedAt) || at.After(p.ExitedAt.Add(time.Second)) {
				t.Errorf("the end's event is of %v, the end of %v", at, p.ExitedAt)
			}
		}
	}
}

// TestUntoldEvents restarts an engine to which nobody listened.
func TestUntoldEvents(t *testing.T) {
	n := newNode(t)
	pod := n.run(n.pod())
	runs := n.ready(n.begin(pod, n.script(forever)))
	ended := n.begin(pod, n.script("exit 1"))
	n.exited(ended)
	created := n.create(pod, n.script("true"))
	n.restart()
	l := n.listen()
	for id, want := range map[string][]string{
		pod: {"created", "started"}, runs: {"created", "started"}, ended: {"created", "started", "stopped"}, created: {"created"},
	} {
		eventually(t, fmt.Sprint("told are ", want), func() bool { return slices.Equal(l.of(id), want) })
	}
	if _, err := n.StopPodSandbox(context.Background(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod's end is told, after its container's", func() bool {
		return slices.Contains(l.of(pod), "stopped") && slices.Contains(l.of(runs), "stopped")
	})
}

// TestMissedStart starts the engine on the record of a container whose start was
// not recorded: its start is told.
func TestMissedStart(t *testing.T) {
	n := newNode(t)
	l := n.listen()
	pod := n.run(n.pod())
	c := n.ready(n.begin(pod, n.script(forever)))
	eventually(t, "the start is told", func() bool { return len(l.of(c)) == 2 })
	if err := n.Engine.Close(); err != nil {
		t.Fatal(err)
	}
	n.rewrite("containers", c, func(s string) string {
		s = strings.Replace(s, `"Phase":"running"`, `"Phase":"created"`, 1)
		return regexp.MustCompile(`"StartedAt":"[^"]*"`).ReplaceAllString(s, `"StartedAt":"0001-01-01T00:00:00Z"`)
	})
	n.start()
	l = n.listen()
	eventually(t, "the start is told", func() bool { return slices.Contains(l.of(c), "started") })
	if st := n.status(c); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || st.StartedAt == 0 {
		t.Errorf("status is %v", st)
	}
}
