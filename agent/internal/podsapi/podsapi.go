// Package podsapi serves the kubelet's Pods API (pods/v1alpha1, KEP-4188): the
// node's pods for those who run beside the agent, as root, over gRPC on a unix
// socket. It shows what the agent's own API shows; nothing is kept.
package podsapi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	api "k8s.io/kubelet/pkg/apis/pods/v1alpha1"

	"podstead/agent/client"
)

// Pods are the node's.
type Pods interface {
	Pods() []*corev1.Pod
	// Watch returns what is there and a channel of what follows, which is closed if
	// its reader falls too far behind.
	Watch() (now []*corev1.Pod, changes <-chan client.Change, stop func())
}

// largest is how large a message may be: a list of all pods is one.
const largest = 64 << 20

// Serve serves the API on a socket until ctx ends. It fails if somebody listens
// there already.
func Serve(ctx context.Context, socket string, pods Pods) error {
	l, err := listen(socket)
	if err != nil {
		return fmt.Errorf("pods API: %w", err)
	}
	srv := grpc.NewServer(grpc.MaxSendMsgSize(largest))
	api.RegisterPodsServer(srv, server{pods: pods})
	stop := context.AfterFunc(ctx, srv.Stop)
	defer stop()
	err = srv.Serve(l)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func listen(socket string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		return nil, err
	}
	if c, err := net.Dial("unix", socket); err == nil {
		c.Close()
		return nil, fmt.Errorf("%s: a kubelet, or another agent, listens on it", socket)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

type server struct {
	api.UnimplementedPodsServer
	pods Pods
}

func (s server) ListPods(context.Context, *api.ListPodsRequest) (*api.ListPodsResponse, error) {
	resp := &api.ListPodsResponse{}
	for _, p := range s.pods.Pods() {
		b, err := p.Marshal()
		if err != nil {
			return nil, status.Errorf(codes.Internal, "pod %s/%s: %v", p.Namespace, p.Name, err)
		}
		resp.Pods = append(resp.Pods, b)
	}
	return resp, nil
}

func (s server) GetPod(_ context.Context, r *api.GetPodRequest) (*api.GetPodResponse, error) {
	if r.PodUID == "" {
		return nil, status.Error(codes.InvalidArgument, "podUID: it is missing")
	}
	for _, p := range s.pods.Pods() {
		if string(p.UID) == r.PodUID {
			b, err := p.Marshal()
			if err != nil {
				return nil, status.Errorf(codes.Internal, "pod %s/%s: %v", p.Namespace, p.Name, err)
			}
			return &api.GetPodResponse{Pod: b}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "pod with UID %q not found", r.PodUID)
}

func (s server) WatchPods(_ *api.WatchPodsRequest, to grpc.ServerStreamingServer[api.WatchPodsEvent]) error {
	now, changes, stop := s.pods.Watch()
	defer stop()
	for _, p := range now {
		if err := send(to, api.EventType_ADDED, p); err != nil {
			return err
		}
	}
	if err := to.Send(&api.WatchPodsEvent{Type: api.EventType_INITIAL_SYNC_COMPLETE}); err != nil {
		return err
	}
	for {
		select {
		case <-to.Context().Done():
			return to.Context().Err()
		case c, ok := <-changes:
			if !ok {
				return status.Error(codes.Unavailable, "the client is too slow for what happens; watch again")
			}
			if err := s.change(to, c); err != nil {
				return err
			}
		}
	}
}

func (s server) change(to grpc.ServerStreamingServer[api.WatchPodsEvent], c client.Change) error {
	switch {
	case c.Event != nil || c.Pod == nil: // nothing of the pod has changed
		return nil
	case c.Type == client.Added:
		return send(to, api.EventType_ADDED, c.Pod)
	case c.Type == client.Gone:
		return send(to, api.EventType_DELETED, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: c.Pod.Namespace, Name: c.Pod.Name, UID: c.Pod.UID}})
	}
	return send(to, api.EventType_MODIFIED, c.Pod)
}

func send(to grpc.ServerStreamingServer[api.WatchPodsEvent], t api.EventType, p *corev1.Pod) error {
	b, err := p.Marshal()
	if err != nil {
		return status.Errorf(codes.Internal, "pod %s/%s: %v", p.Namespace, p.Name, err)
	}
	return to.Send(&api.WatchPodsEvent{Type: t, Pod: b})
}
