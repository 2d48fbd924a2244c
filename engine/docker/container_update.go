package docker

import (
	"context"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/internal/spec"
)

// UpdateContainerResources changes the limits of a container that has not ended.
func (r *Runtime) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	if err := r.checkResources(req.Linux); err != nil {
		return nil, err
	}
	c, err := r.mustCtr(ctx, req.ContainerId)
	if err != nil {
		return nil, err
	}
	if ctrState(&c.state) == runtimeapi.ContainerState_CONTAINER_EXITED {
		return nil, cri.Errorf(codes.FailedPrecondition, "container %s has ended", c.id)
	}
	req = proto.CloneOf(req)
	_, err = r.join(ctx, "update "+c.id+" "+fingerprint(req), createTimeout, func(ctx context.Context) (string, error) {
		return "", r.updateContainer(ctx, c, req.Linux)
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

func (r *Runtime) updateContainer(ctx context.Context, c *ctr, update *runtimeapi.LinuxContainerResources) error {
	merged := spec.MergeResources(r.resources(c), update)
	merged.OomScoreAdj = int64(r.oomScore(int(merged.OomScoreAdj)))
	var res container.Resources
	setResources(&res, merged)
	if _, err := r.api().ContainerUpdate(ctx, c.id, client.ContainerUpdateOptions{Resources: &res}); err != nil {
		return failed(err, "update container %s", c.id)
	}
	if err := r.containerState.change(c.id, func(s *containerState) { s.Resources.M = merged }); err != nil {
		return err
	}
	if !c.state.Running {
		return nil // the others are set when it starts
	}
	return r.setExtraLimits(c)
}

// resources are the limits that a container has.
func (r *Runtime) resources(c *ctr) *runtimeapi.LinuxContainerResources {
	if s, ok := r.containerState.get(c.id); ok && s.Resources.M != nil {
		return proto.CloneOf(s.Resources.M)
	}
	return proto.CloneOf(c.rec.config().GetLinux().GetResources())
}
