package shim

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"podstead/cgroup"
)

// The pod's stand-in is the events service that containerd would be to the
// shim. Exits are waited for by Wait, so that of all events two count: that a
// container ran out of memory, and that it has ended, before which the former
// came. Each container's stand-in asks for them by a method of our own.
const (
	podService   = "podstead.shim.Pod"
	memoryMethod = "RanOutOfMemory"
)

// ending is what events have said of a container.
type ending struct {
	oom  bool
	seen chan struct{} // closed when it has ended
	once sync.Once
}

type eventServer struct {
	mu      sync.Mutex
	endings map[string]*ending
}

func (s *eventServer) of(id string) *ending {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.endings[id]
	if !ok {
		e = &ending{seen: make(chan struct{})}
		s.endings[id] = e
	}
	return e
}

// serveEvents serves at a socket as long as the stand-in lives.
func serveEvents(path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	s := &eventServer{endings: map[string]*ending{}}
	eventsapi.RegisterTTRPCEventsService(server, s)
	server.RegisterService(podService, &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{memoryMethod: s.ranOutOfMemory}})
	go server.Serve(context.Background(), l)
	return nil
}

// Forward takes an event of the shim.
func (s *eventServer) Forward(_ context.Context, r *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	event := r.GetEnvelope().GetEvent()
	switch r.GetEnvelope().GetTopic() {
	case "/tasks/oom":
		var m events.TaskOOM
		if proto.Unmarshal(event.GetValue(), &m) == nil {
			e := s.of(m.ContainerID)
			s.mu.Lock()
			e.oom = true
			s.mu.Unlock()
		}
	case "/tasks/exit":
		var m events.TaskExit
		if proto.Unmarshal(event.GetValue(), &m) == nil && (m.ID == m.ContainerID || m.ID == "") {
			e := s.of(m.ContainerID)
			e.once.Do(func() { close(e.seen) })
		}
	}
	return &emptypb.Empty{}, nil
}

// ranOutOfMemory answers a container's stand-in, when the container's end has
// been told of, or the caller waits no longer.
func (s *eventServer) ranOutOfMemory(ctx context.Context, decode func(any) error) (any, error) {
	var id wrapperspb.StringValue
	if err := decode(&id); err != nil {
		return nil, err
	}
	e := s.of(id.Value)
	select {
	case <-e.seen:
	case <-time.After(eventPatience):
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.endings, id.Value)
	return wrapperspb.Bool(e.oom), nil
}

// eventPatience is how long an event may come after what it tells of.
const eventPatience = 2 * time.Second

// noteMemory leaves a note if the container, which has ended and is not deleted,
// ran out of memory. runc's shim may tell of that later than of the end, or not at
// all.
func (t *Task) noteMemory(ctx context.Context) {
	if told := t.toldOfMemory(ctx); told || t.oomKills() > 0 {
		os.WriteFile(t.file(oomFile), nil, 0o600)
	}
}

// oomKills counts those in the container's group on the host, of which what runs
// in a virtual machine has none.
func (t *Task) oomKills() uint64 {
	var s struct { // all of it would take longer to read
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	data, err := os.ReadFile(t.file("config.json"))
	if err != nil || json.Unmarshal(data, &s) != nil || s.Linux.CgroupsPath == "" {
		return 0
	}
	h, err := cgroup.Detect()
	if err != nil {
		return 0
	}
	n, _ := h.Group(s.Linux.CgroupsPath).OOMKills()
	return n
}

// toldOfMemory asks the pod's stand-in for the events.
func (t *Task) toldOfMemory(ctx context.Context) bool {
	a, err := readAddress(t.Pod)
	if err != nil {
		return false
	}
	conn, err := net.Dial("unix", a.Events)
	if err != nil {
		return false // the pod's stand-in is dead, and nobody knows
	}
	c := ttrpc.NewClient(conn)
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*eventPatience)
	defer cancel()
	var oom wrapperspb.BoolValue
	return c.Call(ctx, podService, memoryMethod, wrapperspb.String(t.ID), &oom) == nil && oom.Value
}

// RanOutOfMemory tells whether the shim has said so of a container that ended.
func RanOutOfMemory(bundle string) bool {
	t := Task{Bundle: bundle}
	_, err := os.Lstat(t.file(oomFile))
	return err == nil
}
