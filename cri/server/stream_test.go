package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/cri/remote"
)

// figures is a runtime that has lists, and those of stats and metrics.
type figures struct {
	cri.Runtime
	asked proto.Message // the last filter
	pods  []*runtimeapi.PodSandboxMetrics
}

func (f *figures) ListContainerStats(_ context.Context, r *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	f.asked = r.Filter
	return &runtimeapi.ListContainerStatsResponse{Stats: []*runtimeapi.ContainerStats{{Attributes: &runtimeapi.ContainerAttributes{Id: "a"}}, {}}}, nil
}

func (f *figures) ListPodSandboxStats(_ context.Context, r *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	f.asked = r.Filter
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: []*runtimeapi.PodSandboxStats{{}, {}, {}}}, nil
}

func (f *figures) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: f.pods}, nil
}

func (f *figures) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	f.asked = r.Filter
	return &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{{}}}, nil
}

func (f *figures) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	f.asked = r.Filter
	return &runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{{}, {}}}, nil
}

func (f *figures) ListImages(_ context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	f.asked = r.Filter
	return &runtimeapi.ListImagesResponse{Images: []*runtimeapi.Image{{}, {}, {}}}, nil
}

// drain reads a stream to its end and counts items.
func drain[M any](t *testing.T, stream grpc.ServerStreamingClient[M], err error, items func(*M) int) int {
	t.Helper()
	n := 0
	for err == nil {
		var part *M
		if part, err = stream.Recv(); err == nil {
			n += items(part)
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return n
}

func TestStreamedListsAreFiltered(t *testing.T) {
	f := &figures{}
	_, _, socket, _ := serve(t, f)
	client := raw(t, socket)
	byPod := &runtimeapi.PodSandboxFilter{Id: "x", State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}, LabelSelector: map[string]string{"k": "v"}}
	pods, err := client.StreamPodSandboxes(t.Context(), &runtimeapi.StreamPodSandboxesRequest{Filter: byPod})
	if n := drain(t, pods, err, func(r *runtimeapi.StreamPodSandboxesResponse) int { return len(r.PodSandboxes) }); n != 1 || !proto.Equal(f.asked, byPod) {
		t.Errorf("%d pods came, asked by %v", n, f.asked)
	}
	byContainer := &runtimeapi.ContainerFilter{Id: "x", PodSandboxId: "y", LabelSelector: map[string]string{"k": "v"}}
	containers, err := client.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{Filter: byContainer})
	if n := drain(t, containers, err, func(r *runtimeapi.StreamContainersResponse) int { return len(r.Containers) }); n != 2 || !proto.Equal(f.asked, byContainer) {
		t.Errorf("%d containers came, asked by %v", n, f.asked)
	}
	byImage := &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: "x"}}
	images, err := runtimeapi.NewImageServiceClient(connect(t, socket)).StreamImages(t.Context(), &runtimeapi.StreamImagesRequest{Filter: byImage})
	if n := drain(t, images, err, func(r *runtimeapi.StreamImagesResponse) int { return len(r.Images) }); n != 3 || !proto.Equal(f.asked, byImage) {
		t.Errorf("%d images came, asked by %v", n, f.asked)
	}
}

func TestStreamedFiguresAreFiltered(t *testing.T) {
	f := &figures{pods: []*runtimeapi.PodSandboxMetrics{{PodSandboxId: "p"}}}
	_, _, socket, _ := serve(t, f)
	client := raw(t, socket)
	byContainer := &runtimeapi.ContainerStatsFilter{Id: "x", PodSandboxId: "y", LabelSelector: map[string]string{"k": "v"}}
	stream, err := client.StreamContainerStats(t.Context(), &runtimeapi.StreamContainerStatsRequest{Filter: byContainer})
	if n := drain(t, stream, err, func(r *runtimeapi.StreamContainerStatsResponse) int { return len(r.ContainerStats) }); n != 2 || !proto.Equal(f.asked, byContainer) {
		t.Errorf("%d containers came, asked by %v", n, f.asked)
	}
	byPod := &runtimeapi.PodSandboxStatsFilter{Id: "x", LabelSelector: map[string]string{"k": "v"}}
	pods, err := client.StreamPodSandboxStats(t.Context(), &runtimeapi.StreamPodSandboxStatsRequest{Filter: byPod})
	if n := drain(t, pods, err, func(r *runtimeapi.StreamPodSandboxStatsResponse) int { return len(r.PodSandboxStats) }); n != 3 || !proto.Equal(f.asked, byPod) {
		t.Errorf("%d pods came, asked by %v", n, f.asked)
	}
	metrics, err := client.StreamPodSandboxMetrics(t.Context(), &runtimeapi.StreamPodSandboxMetricsRequest{})
	if n := drain(t, metrics, err, func(r *runtimeapi.StreamPodSandboxMetricsResponse) int { return len(r.PodSandboxMetrics) }); n != 1 {
		t.Errorf("metrics of %d pods came", n)
	}
}

// TestMetricsBeyondOneMessage has more metrics than a message may hold.
func TestMetricsBeyondOneMessage(t *testing.T) {
	f := &figures{}
	for i := range 40 {
		f.pods = append(f.pods, &runtimeapi.PodSandboxMetrics{PodSandboxId: fmt.Sprint(i, strings.Repeat("x", 600<<10))})
	}
	_, client, _, _ := serve(t, f)
	r, err := client.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil || len(r.GetPodMetrics()) != len(f.pods) {
		t.Errorf("metrics of %d pods, %v", len(r.GetPodMetrics()), err)
	}
}

// older is a server of a CRI without streamed lists.
type older struct {
	runtimeapi.UnimplementedRuntimeServiceServer
}

func (older) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: []*runtimeapi.PodSandboxMetrics{{PodSandboxId: "p"}}}, nil
}

func TestMetricsWithoutStreams(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cri.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(s, older{})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	client, err := remote.New(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	r, err := client.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil || len(r.GetPodMetrics()) != 1 {
		t.Errorf("metrics are %v, %v", r, err)
	}
}
