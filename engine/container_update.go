package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/internal/nri"
	"podstead/engine/internal/spec"
)

// UpdateContainerResources changes the limits of a created or running container,
// all or nothing. Fields that are zero stay as they are.
func (e *Engine) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	c, err := e.mustContainer(req.ContainerId)
	if err != nil {
		return nil, err
	}
	if req.Linux == nil {
		return &runtimeapi.UpdateContainerResourcesResponse{}, nil
	}
	extra, err := e.askPluginsOfUpdate(ctx, c, req.Linux)
	if err == nil {
		err = e.updateContainer(ctx, c, spec.MergeResources(req.Linux, nri.CRILimits(extra)), extra)
	}
	if err != nil {
		return nil, fmt.Errorf("update container %s: %w", c.id, err)
	}
	e.relay(ctx, "PostUpdateContainer", c, e.plugins.PostUpdate)
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// updateContainer changes limits; extra are those, maybe nil, that plugins have
// set, some of which CRI has no fields for.
func (e *Engine) updateContainer(ctx context.Context, c *container, update *runtimeapi.LinuxContainerResources, extra *api.LinuxResources) error {
	if err := c.turn.take(ctx); err != nil {
		return err
	}
	defer c.turn.give()
	rec := c.record()
	if rec.Phase != containerCreated && rec.Phase != containerRunning {
		return cri.Errorf(codes.FailedPrecondition, "it is %s", rec.Phase)
	}
	merged := spec.MergeResources(rec.Resources.M, proto.CloneOf(update))
	limits, err := spec.Resources(merged)
	if err != nil {
		return err
	}
	if err := nri.SetLimits(limits, extra); err != nil {
		return cri.Errorf(codes.InvalidArgument, "linux.resources.%v", err)
	}
	if err := e.cfg.Cgroups.Group(rec.Cgroup).Set(limits); err != nil {
		return e.restoreLimits(&rec, err)
	}
	if adj := merged.OomScoreAdj; update.OomScoreAdj != 0 && rec.Pid != 0 {
		if err := setOOMScoreAdj(rec.Pid, adj); err != nil {
			return e.restoreLimits(&rec, err)
		}
	}
	return e.changeContainer(c, func(r *containerRecord) { r.Resources.M = merged })
}

// restoreLimits puts the limits back that an update which failed with cause may
// have changed in part.
func (e *Engine) restoreLimits(r *containerRecord, cause error) error {
	var old *specs.LinuxResources
	old, err := spec.Resources(r.Resources.M)
	if err == nil {
		err = e.cfg.Cgroups.Group(r.Cgroup).Set(old)
	}
	if err != nil {
		return errors.Join(cause, fmt.Errorf("restore the old limits: %w", err))
	}
	return cause
}

func setOOMScoreAdj(pid int, adj int64) error {
	return os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), "oom_score_adj"), []byte(strconv.FormatInt(adj, 10)), 0)
}
