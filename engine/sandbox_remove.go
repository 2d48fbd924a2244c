package engine

import (
	"context"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RemovePodSandbox stops the sandbox if needed and removes it with all its
// containers. One that does not exist is no error.
func (e *Engine) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	s, err := e.sandbox(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	if s != nil {
		err := s.removing.do(ctx, e, removeTimeout, func(ctx context.Context) error { return e.removeSandbox(ctx, s) })
		if err != nil {
			return nil, fmt.Errorf("remove pod sandbox %s: %w", s.id, err)
		}
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (e *Engine) removeSandbox(ctx context.Context, s *sandbox) error {
	if err := e.stopSandbox(ctx, s); err != nil {
		return err
	}
	if err := each(e.containersOf(s.id), func(c *container) error { return e.removeContainer(ctx, c) }); err != nil {
		return err
	}
	rec := s.record()
	if err := e.forgetSandbox(s); err != nil {
		return err
	}
	e.relayPod(ctx, "RemovePodSandbox", &rec, e.plugins.RemovePod)
	e.log.Info("pod sandbox is removed", "pod", s.id)
	e.events.Send(&runtimeapi.ContainerEventResponse{
		ContainerId: s.id, ContainerEventType: eventDeleted, PodSandboxStatus: sandboxStatus(&rec),
	}, time.Now())
	return nil
}
