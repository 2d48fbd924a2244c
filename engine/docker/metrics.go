package docker

import (
	"context"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// ListMetricDescriptors is not there yet.
func (r *Runtime) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return nil, cri.Errorf(codes.Unimplemented, "ListMetricDescriptors is not implemented on Docker")
}

// ListPodSandboxMetrics is not there yet.
func (r *Runtime) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return nil, cri.Errorf(codes.Unimplemented, "ListPodSandboxMetrics is not implemented on Docker")
}
