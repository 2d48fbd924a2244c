package shim

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/events"
	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestParseAnswer(t *testing.T) {
	message, err := proto.Marshal(&bootapi.BootstrapResult{Version: 3, Address: "unix:///run/s", Protocol: "ttrpc"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		answer  string
		version int
		err     string
	}{
		{"unix:///run/s\n", 2, ""},
		{`{"version":2,"address":"unix:///run/s","protocol":"ttrpc"}`, 2, ""},
		{`{"version":3,"address":"unix:///run/s","protocol":"ttrpc"}`, 3, ""},
		{string(message), 3, ""},
		{`{"version":4,"address":"unix:///run/s","protocol":"ttrpc"}`, 0, "version 4"},
		{`{"version":3,"address":"unix:///run/s","protocol":"grpc"}`, 0, `by "grpc"`},
		{`{"version":3,"address":"vsock://3:1024","protocol":"ttrpc"}`, 0, "vsock"},
		{`{"version":`, 0, "unexpected end"},
		{"", 0, "version 0"},
		{"nonsense", 0, "nonsense"},
	} {
		a, err := parseAnswer([]byte(c.answer))
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: %+v, %v, want an error with %q", c.answer, a, err, c.err)
			}
			continue
		}
		if err != nil || a.Version != c.version || a.Address != "unix:///run/s" {
			t.Errorf("%q: %+v, %v", c.answer, a, err)
		}
	}
}

// TestOutOfMemory sends the events of a container's end as a shim does, and has
// its stand-in ask about them.
func TestOutOfMemory(t *testing.T) {
	pod := t.TempDir()
	socket := filepath.Join(pod, "e")
	if err := serveEvents(socket); err != nil {
		t.Fatal(err)
	}
	err := os.WriteFile(filepath.Join(pod, addressFile), []byte(`{"version":3,"address":"unix:///gone","protocol":"ttrpc","events":"`+socket+`"}`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	c := ttrpc.NewClient(conn)
	defer c.Close()
	shim := eventsapi.NewTTRPCEventsClient(c)
	send := func(topic string, m proto.Message) {
		value, err := proto.Marshal(m)
		if err == nil {
			_, err = shim.Forward(context.Background(), &eventsapi.ForwardRequest{Envelope: &types.Envelope{
				Topic: topic, Event: &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: value},
			}})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	send("/tasks/oom", &events.TaskOOM{ContainerID: "a"})
	send("/tasks/exit", &events.TaskExit{ContainerID: "a", ID: "an exec"})
	send("/tasks/exit", &events.TaskExit{ContainerID: "a", ID: "a"})
	send("/tasks/exit", &events.TaskExit{ContainerID: "b", ID: "b"})
	for id, want := range map[string]bool{"a": true, "b": false} {
		task := Task{ID: id, Pod: pod, Bundle: t.TempDir()}
		task.noteMemory(context.Background())
		if got := RanOutOfMemory(task.Bundle); got != want {
			t.Errorf("%s ran out of memory: %v", id, got)
		}
	}
}
