package event

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func send(h *Hub, ids ...string) {
	for _, id := range ids {
		h.Send(&Event{ContainerId: id}, time.Now())
	}
}

// heard takes what is there for a listener, by ids.
func heard(t *testing.T, l *Listener) []string {
	t.Helper()
	var ids []string
	last := int64(0)
	for {
		ev, err := l.take()
		if err != nil {
			t.Fatal(err)
		}
		if ev == nil {
			return ids
		}
		if ev.CreatedAt <= last {
			t.Errorf("%s is of %d, and comes after %d", ev.ContainerId, ev.CreatedAt, last)
		}
		last = ev.CreatedAt
		ids = append(ids, ev.ContainerId)
	}
}

func want(t *testing.T, l *Listener, ids ...string) {
	t.Helper()
	if got := heard(t, l); !slices.Equal(got, ids) {
		t.Errorf("heard %q, want %q", got, ids)
	}
}

func TestEachHearsAllInOrder(t *testing.T) {
	h := NewHub(nil)
	a, b := h.Join(), h.Join()
	send(h, "1", "2")
	want(t, a, "1", "2")
	a.Leave()
	send(h, "3")
	want(t, b, "1", "2", "3")
	b.Leave()
}

func TestTimeNeverGoesBack(t *testing.T) {
	h := NewHub(nil)
	l := h.Join()
	now := time.Now()
	for i := range 3 {
		h.Send(&Event{ContainerId: fmt.Sprint(i)}, now.Add(-time.Duration(i)*time.Hour))
	}
	want(t, l, "0", "1", "2") // heard checks times
}

func TestLateListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		send(h, "1", "2")
		a, b := h.Join(), h.Join()
		want(t, a, "1", "2")
		send(h, "3")
		want(t, a, "3")
		want(t, b, "1", "2", "3")
		time.Sleep(KeepFor + time.Second)
		if h.Join(); !h.Wanted() {
			t.Error("nothing is wanted although somebody listens")
		}
		c := h.Join()
		send(h, "4")
		want(t, c, "4")
		want(t, b, "4")
	})
}

func TestNobodyListens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		if !h.Wanted() {
			t.Error("the first events are not kept")
		}
		time.Sleep(KeepFor + time.Second)
		if h.Wanted() {
			t.Error("events are wanted by nobody")
		}
	})
}

func TestOneWhoDoesNotListenIsLetGo(t *testing.T) {
	h := NewHub(nil)
	slow, quick := h.Join(), h.Join()
	for i := range MaxBehind + 1 {
		send(h, fmt.Sprint(i))
		want(t, quick, fmt.Sprint(i))
	}
	if _, err := slow.Next(t.Context()); !errors.Is(err, ErrBehind) {
		t.Errorf("error is %v", err)
	}
	if len(slow.queue.items) != 0 {
		t.Error("its events are kept")
	}
	send(h, "more")
	want(t, quick, "more")
}

func TestLargeEventsAreBoundedBySize(t *testing.T) {
	h := NewHub(nil)
	l := h.Join()
	large := func() *Event {
		return &Event{PodSandboxStatus: &runtimeapi.PodSandboxStatus{Id: strings.Repeat("x", maxBehindBytes/4)}}
	}
	for range 3 {
		h.Send(large(), time.Now())
	}
	if len(l.queue.items) != 3 {
		t.Fatalf("%d are there", len(l.queue.items))
	}
	h.Send(large(), time.Now())
	if _, err := l.Next(t.Context()); !errors.Is(err, ErrBehind) {
		t.Errorf("error is %v", err)
	}
	if n := h.opening.bytes; n > maxBehindBytes {
		t.Errorf("%d bytes are kept", n)
	}
}

func TestNextWaits(t *testing.T) {
	h := NewHub(nil)
	l := h.Join()
	got := make(chan string)
	go func() {
		ev, err := l.Next(t.Context())
		got <- fmt.Sprint(ev.GetContainerId(), err)
	}()
	send(h, "1")
	if s := <-got; s != "1<nil>" {
		t.Errorf("got %s", s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	go func() {
		_, err := l.Next(t.Context())
		got <- fmt.Sprint(err)
	}()
	h.Close()
	if s := <-got; s != ErrClosed.Error() {
		t.Errorf("got %s", s)
	}
	if _, err := h.Join().Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

func TestEventsAreTheListenersOwn(t *testing.T) {
	h := NewHub(nil)
	a, b := h.Join(), h.Join()
	send(h, "1")
	ev, _ := a.Next(t.Context())
	ev.ContainerId = "changed"
	want(t, b, "1")
}

func TestMark(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events")
	before := time.Now()
	m, err := OpenMark(path)
	if err != nil {
		t.Fatal(err)
	}
	if at := m.Untold(); at.Before(before.Add(-doubt)) {
		t.Errorf("a new mark is of %v", at)
	}
	h := NewHub(m)
	later := before.Add(time.Hour)
	ev := &Event{}
	h.Send(ev, later)
	h.mark.move(ev.CreatedAt)
	h.mark.move(before.UnixNano()) // told late
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	for _, restart := range []struct {
		content string // "": as it was left
		want    func(time.Time) bool
	}{
		{"", func(at time.Time) bool { return at.Equal(time.Unix(0, later.UnixNano()).Add(-doubt)) }},
		{"torn\n", func(at time.Time) bool { return at.After(before.Add(-doubt)) && at.Before(later) }},
	} {
		if restart.content != "" {
			if err := os.WriteFile(path, []byte(restart.content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		m, err := OpenMark(path)
		if err != nil {
			t.Fatal(err)
		}
		if at := m.Untold(); !restart.want(at) {
			t.Errorf("after a restart with %q the mark is of %v", restart.content, at)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Who joins an engine that has done much is not behind for that.
func TestJoiningIsNotFallingBehind(t *testing.T) {
	h := NewHub(nil)
	for range 3 * MaxBehind {
		send(h, "old")
	}
	l := h.Join()
	for range MaxBehind / 2 {
		send(h, "new")
	}
	if got := heard(t, l); len(got) != MaxBehind || got[MaxBehind/2] != "new" {
		t.Errorf("%d events are heard", len(got))
	}
}
