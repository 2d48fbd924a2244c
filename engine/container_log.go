package engine

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// ReopenContainerLog makes the log continue in a new file at its path, after the
// client renamed the old one.
func (e *Engine) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	c, err := e.mustContainer(req.ContainerId)
	if err != nil {
		return nil, err
	}
	if rec := c.record(); rec.Phase != containerRunning {
		return nil, cri.Errorf(codes.FailedPrecondition, "container %s is %s, not running", c.id, rec.Phase)
	}
	if err := e.cfg.Supervisor.ReopenLog(ctx, c.id); err != nil {
		return nil, fmt.Errorf("reopen the log of container %s: %w", c.id, err)
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}
