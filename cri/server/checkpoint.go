package server

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// The calls of cri.Checkpoints, which not every runtime has.

func (s *runtimeService) CheckpointContainer(ctx context.Context, req *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	if r, ok := s.Runtime.(cri.Checkpoints); ok {
		return r.CheckpointContainer(ctx, req)
	}
	return s.unimplementedRuntime.CheckpointContainer(ctx, req)
}

func (s *runtimeService) CheckpointPod(ctx context.Context, req *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	if r, ok := s.Runtime.(cri.Checkpoints); ok {
		return r.CheckpointPod(ctx, req)
	}
	return s.unimplementedRuntime.CheckpointPod(ctx, req)
}

func (s *runtimeService) RestorePod(ctx context.Context, req *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	if r, ok := s.Runtime.(cri.Checkpoints); ok {
		return r.RestorePod(ctx, req)
	}
	return s.unimplementedRuntime.RestorePod(ctx, req)
}
