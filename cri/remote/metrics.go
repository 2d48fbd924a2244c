package remote

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// ListMetricDescriptors calls the runtime.
func (r *Runtime) ListMetricDescriptors(ctx context.Context, req *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return call(ctx, r.limit, r.runtime.ListMetricDescriptors, req)
}

// ListPodSandboxMetrics asks for a stream, since the metrics of some hundred
// pods do not fit into one message. A runtime that has none is asked for a list.
func (r *Runtime) ListPodSandboxMetrics(ctx context.Context, req *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	limited, cancel := context.WithTimeout(ctx, r.limit)
	defer cancel()
	all := &runtimeapi.ListPodSandboxMetricsResponse{}
	stream, err := r.runtime.StreamPodSandboxMetrics(limited, &runtimeapi.StreamPodSandboxMetricsRequest{})
	for err == nil {
		var some *runtimeapi.StreamPodSandboxMetricsResponse
		if some, err = stream.Recv(); err == nil {
			all.PodMetrics = append(all.PodMetrics, some.GetPodSandboxMetrics()...)
		}
	}
	switch {
	case errors.Is(err, io.EOF):
		return all, nil
	case cri.Code(err) == codes.Unimplemented:
		return call(ctx, r.limit, r.runtime.ListPodSandboxMetrics, req)
	}
	return nil, err
}
