package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"podstead/agent/client"
)

// serveFake runs an agent on a fake runtime, in real time, behind its socket.
func serveFake(t *testing.T) (*client.Client, *fakeRuntime) {
	t.Helper()
	return serveFakeIn(t, t.TempDir(), "")
}

// serveFakeIn has its state in a directory and reads a kernel's log.
func serveFakeIn(t *testing.T, dir, kernelLog string) (*client.Client, *fakeRuntime) {
	t.Helper()
	rt := newFake(t)
	socket := filepath.Join(t.TempDir(), "agent.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(Config{Runtime: rt, StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), PodLogsDir: filepath.Join(dir, "logs"), NodeName: "n1", Version: "v", Listener: listener})
	if err != nil {
		t.Fatal(err)
	}
	a.kernelLog = kernelLog
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	c := client.New(socket)
	t.Cleanup(func() {
		c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c, rt
}

// watchUntil returns when f is satisfied with a change.
func watchUntil(t *testing.T, c *client.Client, f func(client.Change) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	stop := errors.New("stop")
	if err := c.Watch(ctx, "default", "web", func(x client.Change) error {
		if f(x) {
			return stop
		}
		return nil
	}); !errors.Is(err, stop) {
		t.Fatalf("watch: %v", err)
	}
}

func TestAPI(t *testing.T) {
	c, rt := serveFake(t)
	ctx := t.Context()
	if err := c.Healthy(ctx); err != nil {
		t.Error(err)
	}
	if v, err := c.Version(ctx); err != nil || v.Runtime != "fake" || v.Node != "n1" || v.Version != "v" {
		t.Errorf("version %+v, %v", v, err)
	}
	if _, err := c.Pod(ctx, "default", "web"); !apierrors.IsNotFound(err) {
		t.Errorf("a pod that is not there: %v", err)
	}
	if _, err := c.Apply(ctx, []byte("kind: Deployment")); !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), "write its spec.template as a Pod") {
		t.Errorf("a kind that is not supported: %v", err)
	}
	r, err := c.Apply(ctx, []byte(strings.Replace(web, "spec:", "spec:\n  nodeSelector: {a: b}", 1)))
	if err != nil || r.Objects[0].Action != client.Created || len(r.Objects[0].Warnings) != 1 {
		t.Errorf("apply: %+v, %v", r, err)
	}
	synced, running := false, false
	watchUntil(t, c, func(x client.Change) bool {
		synced = synced || x.Type == client.Synced
		running = running || x.Pod != nil && x.Pod.Status.Phase == corev1.PodRunning
		return synced && running
	})
	list, err := c.Pods(ctx, "default")
	if err != nil || len(list.Items) != 1 || list.Items[0].Annotations[client.AnnotationSource] != "api" {
		t.Errorf("pods: %v, %v", list, err)
	}
	if list, err = c.Pods(ctx, "elsewhere"); err != nil || len(list.Items) != 0 {
		t.Errorf("pods of another namespace: %v, %v", list, err)
	}
	events, err := c.PodEvents(ctx, "default", "web")
	if err != nil || len(events.Items) < 4 || events.Items[0].Reason != "FieldWithoutEffect" {
		t.Errorf("events %+v, %v", events, err)
	}
	// The start of a container that runs may still be under way for a moment.
	watchUntil(t, c, func(client.Change) bool {
		why, err := c.Why(ctx, "default", "web")
		return err == nil && why.Stage == "running"
	})
	apiLogs(t, c, rt)
	if r, err := c.Delete(ctx, []byte(web+"---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: none}}"), nil); err != nil || r.Objects[0].Action != client.Deleted || r.Objects[1].Action != client.NotFound {
		t.Errorf("delete: %+v, %v", r, err)
	}
	watchUntil(t, c, func(x client.Change) bool { return x.Type == client.Gone || x.Type == client.Synced && rt.empty() })
	if _, err := c.LoadImages(ctx, strings.NewReader("x")); err == nil || !strings.Contains(err.Error(), "not the one built in") {
		t.Errorf("load without a store: %v", err)
	}
}

func apiLogs(t *testing.T, c *client.Client, rt *fakeRuntime) {
	t.Helper()
	rt.mu.Lock()
	path := ""
	for _, x := range rt.containers {
		path = x.logPath
	}
	rt.mu.Unlock()
	content := "2026-01-01T00:00:00.000000000Z stdout F one\n2026-01-01T00:00:01.000000000Z stderr F two\n2026-01-01T00:00:02.000000000Z stdout P thr\n2026-01-01T00:00:02.000000000Z stdout F ee\n"
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	one, bytes := int64(1), int64(5)
	for _, x := range []struct {
		o    client.LogOptions
		want string
	}{
		{client.LogOptions{}, "one\ntwo\nthree\n"},
		{client.LogOptions{Container: "app", TailLines: &one}, "ee\n"},
		{client.LogOptions{LimitBytes: &bytes}, "one\nt"},
		{client.LogOptions{SinceTime: time.Date(2026, 1, 1, 0, 0, 1, 0, time.UTC)}, "two\nthree\n"},
	} {
		r, err := c.Logs(t.Context(), "default", "web", x.o)
		if err != nil {
			t.Errorf("%+v: %v", x.o, err)
			continue
		}
		got, err := io.ReadAll(r)
		r.Close()
		if err != nil || string(got) != x.want {
			t.Errorf("%+v: %q, %v; want %q", x.o, got, err, x.want)
		}
	}
	if _, err := c.Logs(t.Context(), "default", "web", client.LogOptions{Container: "none"}); !apierrors.IsBadRequest(err) {
		t.Errorf("a container that is not there: %v", err)
	}
	if _, err := c.Logs(t.Context(), "default", "web", client.LogOptions{Previous: true}); err == nil || !strings.Contains(err.Error(), "previous terminated container") {
		t.Errorf("no previous instance: %v", err)
	}
}
