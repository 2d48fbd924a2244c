package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/handler"
	"podstead/supervisor"
)

// startTimeout bounds the release of a prepared container up to its execve.
const startTimeout = 2 * time.Minute

// StartContainer lets a created container run. If its program cannot be
// executed, the container has exited, with reason StartError.
func (e *Engine) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	c, err := e.mustContainer(req.ContainerId)
	if err != nil {
		return nil, err
	}
	err = c.starting.do(ctx, e, startTimeout, func(ctx context.Context) error {
		if err := e.startContainer(ctx, c); err != nil {
			return fmt.Errorf("start container %s: %w", c.id, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if cri.Heard(ctx) {
		c.mu.Lock()
		c.startTold = true
		c.mu.Unlock()
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

func (e *Engine) startContainer(ctx context.Context, c *container) error {
	if err := c.turn.take(ctx); err != nil {
		return err
	}
	defer c.turn.give()
	c.mu.Lock()
	rec, told := c.rec, c.startTold
	c.mu.Unlock()
	if !told && !rec.StartedAt.IsZero() {
		return nil // a retry: it was started, and whoever asked had left
	}
	if rec.Phase != containerCreated {
		return cri.Errorf(codes.FailedPrecondition, "it is %s, not created", rec.Phase)
	}
	s, err := e.mustSandbox(rec.SandboxID)
	if err != nil {
		return err
	}
	if p := s.record().Phase; p != sandboxReady {
		return cri.Errorf(codes.FailedPrecondition, "pod sandbox %s is not ready (%s)", s.id, p)
	}
	h, err := e.handlerOf(rec.Runtime)
	if err != nil {
		return err
	}
	kills, err := e.cfg.Cgroups.Group(rec.Cgroup).OOMKills()
	if err != nil {
		return err
	}
	if err := e.mayStart(ctx, c); err != nil {
		return e.startFailed(c, err)
	}
	p, err := e.release(ctx, c, h, kills)
	if err != nil {
		return e.startFailed(c, err)
	}
	e.relay(ctx, "PostStartContainer", c, e.plugins.PostStart)
	e.log.Info("container runs", "container", c.id, "pid", p.Pid)
	return nil
}

// release lets the process go. Its end may be seen before this returns; then
// it is handled here, after the start is recorded.
func (e *Engine) release(ctx context.Context, c *container, h handler.Handler, oomKills uint64) (supervisor.Process, error) {
	c.mu.Lock()
	c.startUnderWay = true
	c.mu.Unlock()
	g := e.cfg.Cgroups.Group(c.record().Cgroup)
	unmade := c.record().Pid == 0 // what makes it is in its cgroup, too
	prepared, unknown := g.CPUNanoseconds()
	p, err := e.startProcess(ctx, c, h)
	if err == nil || p.Pid != 0 {
		if serr := e.settle(c.record().Cgroup); serr != nil {
			e.log.Warn("a process stays in a container's scope", "container", c.id, "error", serr)
		}
		began := p.StartedAt
		if unmade {
			began = time.Now()
			prepared, unknown = g.CPUNanoseconds()
		}
		if unknown == nil {
			c.cpu.Begin(began, prepared)
		}
		e.recordStart(c, p, oomKills)
	}
	c.mu.Lock()
	early := c.early
	c.startUnderWay, c.early = false, nil
	c.mu.Unlock()
	if err == nil && early != nil {
		e.worker.Go(func() { e.containerExited(c, *early) })
	}
	return p, err
}

func (e *Engine) recordStart(c *container, p supervisor.Process, oomKills uint64) {
	err := e.changeContainer(c, func(r *containerRecord) {
		r.StartedAt, r.OOMKills = p.StartedAt, oomKills
		made := r.Pid == 0                        // at the start
		r.Pid, r.StartTicks = p.Pid, p.StartTicks // those of a restored one are new
		r.StartHooks = false
		if made {
			r.Resources.M = withOOMScore(r.Resources.M, e.hostPid(r))
		}
		if r.Phase == containerCreated {
			r.Phase = containerRunning
		}
	})
	if err != nil {
		e.log.Error("the start of a container could not be recorded", "container", c.id, "error", err)
	}
	e.containerEvent(c, eventStarted, p.StartedAt)
}

// startFailed records a container whose program could not be executed. One that
// was stopped meanwhile has ended by that.
func (e *Engine) startFailed(c *container, cause error) error {
	if c.isStopping() {
		e.recordExit(c, exit{at: time.Now(), code: exitKilled, reason: reasonError})
		return errors.Join(cri.Errorf(codes.FailedPrecondition, "it was stopped before it ran"), e.killGroup(c.record().Cgroup))
	}
	e.recordExit(c, exit{at: time.Now(), code: exitStartError, reason: reasonStartError, message: cause.Error()})
	return errors.Join(cause, e.killGroup(c.record().Cgroup))
}
