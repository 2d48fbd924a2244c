package engine

import (
	"context"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RemoveContainer kills the container if it runs and removes it; its log stays.
// One that does not exist is no error.
func (e *Engine) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	c, err := e.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	if c != nil {
		if err := e.removeContainer(ctx, c); err != nil {
			return nil, err
		}
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (e *Engine) removeContainer(ctx context.Context, c *container) error {
	return c.removing.do(ctx, e, removeTimeout, func(ctx context.Context) error {
		if err := e.removeContainerNow(ctx, c); err != nil {
			return fmt.Errorf("remove container %s: %w", c.id, err)
		}
		return nil
	})
}

func (e *Engine) removeContainerNow(ctx context.Context, c *container) error {
	if err := e.stopContainer(ctx, c, 0); err != nil {
		return err
	}
	if err := c.turn.take(ctx); err != nil {
		return err
	}
	defer c.turn.give()
	rec := c.record()
	if err := e.releaseContainer(ctx, &rec); err != nil {
		return err
	}
	e.poststop(ctx, c)
	if err := e.forgetContainer(c); err != nil {
		return err
	}
	e.containerGone(ctx, &rec)
	e.log.Info("container is removed", "container", c.id)
	e.containerEvent(c, eventDeleted, time.Now())
	return nil
}
