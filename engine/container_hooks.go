package engine

import (
	"context"
	"time"

	"podstead/engine/handler"
	"podstead/supervisor"
)

// Hooks come from CDI devices, NRI plugins and the configuration. Handlers that
// run another runtime's command leave them to it; those of the built-in one are
// the engine's, which may be started anew between any two of them:
//
//   - a creation or a start whose engine ends while its hooks run has failed;
//   - hooks of the end run once the container has ended, or else at its
//     removal, or when the next engine starts; again if that engine ends
//     meanwhile.

// poststopTimeout bounds all hooks of a container's end together.
const poststopTimeout = time.Minute

// expectHooks records that there will be hooks to run after the creation.
func (e *Engine) expectHooks(k *creation, h handler.Handler) error {
	if _, ours := h.(handler.Hooked); !ours || !handler.HasLateHooks(k.spec) {
		return nil
	}
	return e.changeContainer(k.c, func(r *containerRecord) {
		r.LateHooks, r.PoststopDue = true, len(k.spec.Hooks.Poststop) > 0
	})
}

// startWithHooks starts a container whose start has hooks. Whoever stops it
// meanwhile ends them.
func (e *Engine) startWithHooks(ctx context.Context, c *container, h handler.Handler, handled handler.Container) (p supervisor.Process, err error) {
	if handled.Spec, err = e.specification(c); err != nil {
		return p, err
	}
	if err := e.changeContainer(c, func(r *containerRecord) { r.StartHooks = true }); err != nil {
		return p, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.mu.Lock()
	c.endStart = cancel
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.endStart = nil
		c.mu.Unlock()
	}()
	if c.isStopping() { // since before it could be told
		cancel()
	}
	return h.Start(ctx, handled)
}

// giveUpStart ends the hooks of a start under way.
func (c *container) giveUpStart() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.endStart != nil {
		c.endStart()
	}
}

// startInterrupted ends a container whose start's hooks were running when the
// engine ended.
func (e *Engine) startInterrupted(c *container) {
	message := "the engine was started anew while the hooks of the container's start ran"
	e.recordExit(c, exit{at: time.Now(), code: exitStartError, reason: reasonStartError, message: message})
	if err := e.killGroup(c.record().Cgroup); err != nil {
		e.log.Error("kill a container whose start was interrupted", "container", c.id, "error", err)
	}
}

// poststopLater runs the hooks of a container's end in the background.
func (e *Engine) poststopLater(c *container) {
	if !c.record().PoststopDue {
		return
	}
	e.worker.Go(func() {
		if c.turn.take(e.life) == nil {
			defer c.turn.give()
			e.poststop(e.life, c)
		}
	})
}

// poststop runs the hooks of a container's end unless they have run. The caller
// has the container's turn, and nothing of its processes is left.
func (e *Engine) poststop(ctx context.Context, c *container) {
	rec := c.record()
	if !rec.PoststopDue {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, poststopTimeout)
	defer cancel()
	log := e.log.With("container", c.id)
	h, err := e.handlerOf(rec.Runtime)
	hooked, ours := h.(handler.Hooked)
	if err == nil && ours {
		handled := e.handled(&rec)
		if handled.Spec, err = e.specification(c); err == nil {
			err = hooked.Poststop(ctx, handled)
		}
	}
	if err != nil {
		log.Warn("hooks of a container's end failed", "error", err)
	}
	if e.life.Err() != nil {
		return // the next engine's
	}
	if err := e.changeContainer(c, func(r *containerRecord) { r.PoststopDue = false }); err != nil {
		log.Error("record of a container", "error", err)
	}
}
