package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// StopPodSandbox kills the pod's containers and gives back its network,
// addresses and namespaces. The sandbox stays listed, not ready. A sandbox that
// is stopped or does not exist is no error.
func (e *Engine) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	s, err := e.sandbox(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	if s != nil {
		if err := e.stopSandbox(ctx, s); err != nil {
			return nil, err
		}
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (e *Engine) stopSandbox(ctx context.Context, s *sandbox) error {
	return s.stopping.do(ctx, e, removeTimeout, func(ctx context.Context) error {
		if err := e.stopSandboxNow(ctx, s); err != nil {
			return fmt.Errorf("stop pod sandbox %s: %w", s.id, err)
		}
		return nil
	})
}

func (e *Engine) stopSandboxNow(ctx context.Context, s *sandbox) error {
	if err := s.turn.take(ctx); err != nil {
		return err
	}
	defer s.turn.give()
	was := s.record().Phase
	if was == sandboxStopped {
		return nil
	}
	// From here on no container can be created in it.
	if err := e.changeEndingSandbox(s, func(r *sandboxRecord) { r.Phase = sandboxStopping }); err != nil {
		return err
	}
	if err := e.killContainers(ctx, s.id); err != nil {
		return err
	}
	rec := s.record()
	if err := e.releaseSandbox(ctx, &rec); err != nil {
		return err
	}
	now, first := time.Now(), false
	err := e.changeEndingSandbox(s, func(r *sandboxRecord) {
		r.Phase, r.IPs = sandboxStopped, nil
		if first = r.StoppedAt.IsZero(); first {
			r.StoppedAt = now
		}
	})
	if err != nil {
		return err
	}
	e.relayPod(ctx, "StopPodSandbox", &rec, e.plugins.StopPod)
	e.log.Info("pod sandbox is stopped", "pod", s.id)
	if first {
		e.sandboxEvent(s, eventStopped, now)
	}
	return nil
}

// changeEndingSandbox is changeSandbox for a sandbox on its way out. That a
// disk is full must not keep pods from ending, which may be what frees it. After
// a crash the record is behind, and what the kernel has of the sandbox counts.
func (e *Engine) changeEndingSandbox(s *sandbox, edit func(*sandboxRecord)) error {
	err := e.changeSandbox(s, edit)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		e.log.Warn("the end of a pod sandbox could not be recorded", "pod", s.id, "error", err)
		return nil
	}
	return err
}

// killContainers ends all containers of a sandbox, at the same time.
func (e *Engine) killContainers(ctx context.Context, sandboxID string) error {
	return each(e.containersOf(sandboxID), func(c *container) error {
		return e.stopContainer(ctx, c, 0)
	})
}

// each does work for all objects at the same time and joins the errors.
func each[T any](objects []T, work func(T) error) error {
	errs := make([]error, len(objects))
	var wg sync.WaitGroup
	for i, o := range objects {
		wg.Go(func() { errs[i] = work(o) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
