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
	if update.MemoryLimitInBytes > 0 && e.cfg.Cgroups.Unified() {
		// cgroup v2 would kill processes until the rest fits. v1 refuses by itself.
		limits.Memory.CheckBeforeUpdate = new(true)
	}
	undo, err := e.changeLimits(&rec, limits, update.OomScoreAdj)
	if err != nil {
		return err
	}
	if err := e.updateByHandler(ctx, &rec, limits); err != nil {
		undo()
		return err
	}
	old := rec.Resources.M
	if err := e.changeContainer(c, func(r *containerRecord) { r.Resources.M = merged }); err != nil {
		undo()
		c.mu.Lock()
		c.rec.Resources.M = old
		c.mu.Unlock()
		return fmt.Errorf("record the new limits: %w", err)
	}
	return nil
}

// changeLimits changes the limits of a container's cgroup and, unless it is 0,
// the OOM score of its first process, all or nothing. undo puts the old ones back.
func (e *Engine) changeLimits(r *containerRecord, limits *specs.LinuxResources, adj int64) (undo func(), err error) {
	undoLimits, err := e.cfg.Cgroups.Group(r.Cgroup).Change(limits)
	if err != nil || adj == 0 || r.Pid == 0 {
		return undoLimits, err
	}
	pid := e.hostPid(r)
	file := filepath.Join("/proc", strconv.Itoa(pid), "oom_score_adj")
	old, err := os.ReadFile(file)
	if pid == 0 {
		err = errors.New("the handler's processes are not the host's")
	}
	if err == nil {
		err = os.WriteFile(file, strconv.AppendInt(nil, adj, 10), 0)
	}
	if err != nil {
		undoLimits()
		return nil, fmt.Errorf("linux.resources.oom_score_adj: %w", err)
	}
	return func() {
		undoLimits()
		if err := os.WriteFile(file, old, 0); err != nil {
			e.log.Warn("the old oom_score_adj is not restored", "container", r.ID, "error", err)
		}
	}, nil
}
