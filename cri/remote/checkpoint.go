package remote

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

var _ cri.Checkpoints = (*Runtime)(nil)

// CheckpointContainer calls the runtime.
func (r *Runtime) CheckpointContainer(ctx context.Context, req *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	return call(ctx, seconds(req.GetTimeout())+r.limit, r.runtime.CheckpointContainer, req)
}

// CheckpointPod calls the runtime.
func (r *Runtime) CheckpointPod(ctx context.Context, req *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	return call(ctx, 2*r.limit, r.runtime.CheckpointPod, req)
}

// RestorePod calls the runtime.
func (r *Runtime) RestorePod(ctx context.Context, req *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return call(ctx, 2*r.limit, r.runtime.RestorePod, req)
}
