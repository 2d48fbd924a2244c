package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// killTimeout is how long processes that were sent SIGKILL may take to end
// before that is reported: one in an uninterruptible wait cannot be helped.
const killTimeout = 30 * time.Second

// StopContainer asks a container to end and kills it if it has not ended after
// the timeout. One that has ended or does not exist is no error.
func (e *Engine) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	c, err := e.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	if c != nil {
		if err := e.stopContainer(ctx, c, time.Duration(max(req.Timeout, 0))*time.Second); err != nil {
			return nil, fmt.Errorf("stop container %s: %w", c.id, err)
		}
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// stops is the end of a container under way: one signal, however many ask, and
// the earliest of their deadlines. The zero value is ready.
type stops struct {
	mu       sync.Mutex
	cur      *call
	deadline time.Time
	sooner   chan struct{} // has an element when deadline moved
}

// isStopping tells whether an end is under way, or has come.
func (c *container) isStopping() bool {
	select {
	case <-c.exited:
		return true
	default:
	}
	c.stops.mu.Lock()
	defer c.stops.mu.Unlock()
	return c.stops.cur != nil
}

// stopContainer joins the end under way or begins it.
func (e *Engine) stopContainer(ctx context.Context, c *container, timeout time.Duration) error {
	// A container in creation is waited for: then there is something to stop.
	if c.record().Phase == containerCreating {
		if err := c.turn.take(ctx); err != nil {
			return err
		}
		c.turn.give()
	}
	select {
	case <-c.exited:
		return e.waitTold(ctx, c)
	default:
	}
	deadline := time.Now().Add(timeout)
	c.stops.mu.Lock()
	cur := c.stops.cur
	if cur == nil {
		cur = &call{done: make(chan struct{})}
		c.stops.cur, c.stops.deadline = cur, deadline
		c.stops.sooner = make(chan struct{}, 1)
		e.worker.Go(func() { e.runStop(c, cur, timeout > 0) })
	} else if deadline.Before(c.stops.deadline) {
		c.stops.deadline = deadline
		select {
		case c.stops.sooner <- struct{}{}:
		default:
		}
	}
	c.stops.mu.Unlock()
	return cur.wait(ctx)
}

func (e *Engine) runStop(c *container, cur *call, gently bool) {
	err := e.endContainer(c, gently)
	if err == nil {
		err = e.waitTold(e.life, c)
	}
	c.stops.mu.Lock()
	c.stops.cur = nil
	c.stops.mu.Unlock()
	cur.err = err
	close(cur.done)
}

// endContainer sends the stop signal, waits until the deadline, which may move
// closer meanwhile, and kills.
func (e *Engine) endContainer(c *container, gently bool) error {
	rec := c.record()
	if gently && rec.Phase == containerRunning {
		err := e.signalContainer(&rec)
		if err != nil && !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, os.ErrNotExist) {
			e.log.Warn("the stop signal could not be sent", "container", c.id, "signal", syscall.Signal(rec.StopSignal), "error", err)
		}
		if e.waitForDeadline(c) {
			return nil
		}
	}
	return e.killContainer(c)
}

// waitForDeadline tells whether the container exited before its deadline.
func (e *Engine) waitForDeadline(c *container) bool {
	for {
		c.stops.mu.Lock()
		left := time.Until(c.stops.deadline)
		c.stops.mu.Unlock()
		timer := time.NewTimer(left)
		select {
		case <-c.exited:
			timer.Stop()
			return true
		case <-c.stops.sooner:
			timer.Stop()
		case <-timer.C:
			return false
		case <-e.life.Done():
			timer.Stop()
			return false
		}
	}
}

// killContainer kills everything in the container's cgroup, so that nothing
// stays even if the pod shares its pid namespace, and waits for the exit.
func (e *Engine) killContainer(c *container) error {
	if err := e.life.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(e.life, killTimeout)
	defer cancel()
	c.giveUpStart()
	if done, err := e.neverRan(ctx, c); done || err != nil {
		return err
	}
	rec := c.record()
	if err := e.cfg.Cgroups.Group(rec.Cgroup).Kill(ctx); err != nil {
		return fmt.Errorf("kill: %w", err)
	}
	if err := e.killByHandler(ctx, &rec); err != nil {
		return err
	}
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
	}
	// Nobody told us of the exit; ask.
	return e.checkProcess(c)
}

// checkProcess records the exit of a container whose process the supervisor
// knows to be gone or does not know at all.
func (e *Engine) checkProcess(c *container) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.life), leftoverTimeout)
	defer cancel()
	p, err := e.cfg.Supervisor.Get(ctx, c.id)
	switch {
	case errors.Is(err, os.ErrNotExist):
		e.recordExit(c, exit{at: time.Now(), code: exitUnknown, reason: reasonUnknown, message: lostProcess})
		return nil
	case err != nil:
		return err
	case p.ExitedAt.IsZero():
		return fmt.Errorf("process %d has been killed and has not ended: it waits in the kernel", p.Pid)
	}
	e.containerExited(c, p)
	return nil
}

const lostProcess = "the supervisor does not know the container's process any more"
