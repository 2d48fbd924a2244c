package podsapi

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	api "k8s.io/kubelet/pkg/apis/pods/v1alpha1"

	"podstead/agent/client"
)

type pods struct {
	list    []*corev1.Pod
	changes chan client.Change
	stopped chan struct{}
}

func (p pods) Pods() []*corev1.Pod { return p.list }
func (p pods) Watch() ([]*corev1.Pod, <-chan client.Change, func()) {
	return p.list, p.changes, func() { close(p.stopped) }
}

func pod(name string, phase corev1.PodPhase) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "uid-of-a"}, Status: corev1.PodStatus{Phase: phase}}
}

// TestPodsAPI asks as a program of the node's does.
func TestPodsAPI(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "pods-api", "pods-api.sock")
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	if l, err := net.Listen("unix", socket); err != nil {
		t.Fatal(err)
	} else { // as one that was killed leaves it
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		l.Close()
	}
	p := pods{list: []*corev1.Pod{pod("a", corev1.PodPending)}, changes: make(chan client.Change, 10), stopped: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, socket, p) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := api.NewPodsClient(conn)
	list, err := c.ListPods(t.Context(), &api.ListPodsRequest{}, grpc.WaitForReady(true))
	if err != nil || len(list.Pods) != 1 || read(t, list.Pods[0]) != "ns/a uid-of-a Pending" {
		t.Errorf("%v, %v", list, err)
	}
	if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", st.Mode(), err)
	}
	if err := Serve(t.Context(), socket, p); err == nil {
		t.Error("a socket that is served is taken")
	}
	if one, err := c.GetPod(t.Context(), &api.GetPodRequest{PodUID: "uid-of-a"}); err != nil || read(t, one.Pod) != "ns/a uid-of-a Pending" {
		t.Errorf("%v, %v", one, err)
	}
	for uid, want := range map[string]codes.Code{"": codes.InvalidArgument, "other": codes.NotFound} {
		if _, err := c.GetPod(t.Context(), &api.GetPodRequest{PodUID: uid}); status.Code(err) != want {
			t.Errorf("%q: %v", uid, err)
		}
	}
	watch, err := c.WatchPods(t.Context(), &api.WatchPodsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	p.changes <- client.Change{Type: client.Modified, Pod: pod("a", corev1.PodRunning), Event: &corev1.Event{}}
	p.changes <- client.Change{Type: client.Modified, Pod: pod("a", corev1.PodRunning)}
	p.changes <- client.Change{Type: client.Gone, Pod: pod("a", corev1.PodRunning)}
	p.changes <- client.Change{Type: client.Added, Pod: pod("b", corev1.PodPending)}
	close(p.changes)
	for _, want := range []string{"ADDED ns/a uid-of-a Pending", "INITIAL_SYNC_COMPLETE", "MODIFIED ns/a uid-of-a Running", "DELETED ns/a uid-of-a ", "ADDED ns/b uid-of-a Pending"} {
		e, err := watch.Recv()
		if err != nil {
			t.Fatalf("%s: %v", want, err)
		}
		got := e.Type.String()
		if e.Pod != nil {
			got += " " + read(t, e.Pod)
		}
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if _, err := watch.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("a watcher that was cut off: %v", err)
	}
	<-p.stopped
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func read(t *testing.T, b []byte) string {
	t.Helper()
	p := &corev1.Pod{}
	if err := p.Unmarshal(b); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s/%s %s %s", p.Namespace, p.Name, p.UID, p.Status.Phase)
}
