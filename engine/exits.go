package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"podstead/engine/handler"
	"podstead/supervisor"
)

// exits hands the ends of exec'd processes to those who wait for them. The zero
// value is ready.
type exits struct {
	mu      sync.Mutex
	waiting map[string]*waiter
}

type waiter struct {
	exit chan supervisor.Process
	runs bool // it was launched: who does not know it has lost it
}

// expect must be called before the process is launched; forget ends it.
func (x *exits) expect(id string) <-chan supervisor.Process {
	w := &waiter{exit: make(chan supervisor.Process, 1)}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.waiting == nil {
		x.waiting = map[string]*waiter{}
	}
	x.waiting[id] = w
	return w.exit
}

// launched says that an expected process runs.
func (x *exits) launched(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if w, ok := x.waiting[id]; ok {
		w.runs = true
	}
}

// running lists the expected processes that run.
func (x *exits) running() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var ids []string
	for id, w := range x.waiting {
		if w.runs {
			ids = append(ids, id)
		}
	}
	return ids
}

func (x *exits) forget(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.waiting, id)
}

// deliver tells whether somebody waited for the process.
func (x *exits) deliver(p supervisor.Process) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	w, ok := x.waiting[p.ID]
	if ok {
		delete(x.waiting, p.ID)
		w.exit <- p // has room: each ID is delivered once
	}
	return ok
}

// resubscribeDelay is the pause between attempts to follow a supervisor that
// went away.
const resubscribeDelay = 100 * time.Millisecond

// followExits subscribes to the supervisor's events and handles them until
// Close.
func (e *Engine) followExits(ctx context.Context) error {
	events, err := e.cfg.Supervisor.Events(e.life)
	if err != nil {
		return fmt.Errorf("follow the supervisor: %w", err)
	}
	e.worker.Go(func() {
		for {
			for ev := range events {
				e.processExited(ev.Process)
			}
			if events = e.resubscribe(); events == nil {
				return
			}
		}
	})
	return nil
}

// resubscribe follows the supervisor anew after the stream of events ended, and
// catches up with what happened between. It returns nil when the engine ends.
func (e *Engine) resubscribe() <-chan supervisor.Event {
	e.supervisorGone.Store(true)
	for said := false; ; said = true {
		select {
		case <-e.life.Done():
			return nil
		case <-time.After(resubscribeDelay):
		}
		events, err := e.catchUp()
		if err == nil {
			e.supervisorGone.Store(false)
			return events
		}
		if !said && e.life.Err() == nil {
			e.log.Error("the supervisor's events ended; trying again", "error", err)
		}
	}
}

// catchUp handles what happened while no events came: processes that ended, and
// those that a new supervisor does not know, because its predecessor took what
// waited for its start along, or nobody held their descriptors. It returns the
// events that follow.
func (e *Engine) catchUp() (<-chan supervisor.Event, error) {
	// What is launched from here on cannot be lost.
	execs := e.exits.running()
	var containers []*container
	for _, c := range e.allContainers() {
		if p := c.record().Phase; (p == containerCreated || p == containerRunning) && !c.unmade() {
			containers = append(containers, c)
		}
	}
	var ready []*sandbox
	for _, s := range e.allSandboxes() {
		if s.record().Phase == sandboxReady {
			ready = append(ready, s)
		}
	}
	f, err := e.cfg.Supervisor.Follow(e.life)
	if err != nil {
		return nil, err
	}
	for _, ev := range f.Ended {
		e.processExited(ev.Process)
	}
	known := map[string]bool{}
	for _, p := range f.List {
		known[p.ID] = true
		if p.State != supervisor.Exited {
			continue
		}
		waited := e.exits.deliver(p)
		// Nobody's is an exec whose launch broke off with the supervisor.
		if pod, _ := handler.PodOfProcess(p.ID); !waited && e.owned(pod) {
			e.processExited(p)
		} else if err := e.cfg.Supervisor.Forget(e.life, p.ID); err != nil { // no event dropped it
			return nil, err
		}
	}
	for _, id := range execs {
		if !known[id] { // nor among those that ended: they are not waited for any more
			e.exits.deliver(supervisor.Process{ID: id, State: supervisor.Exited, ExitCode: -1, ExitedAt: time.Now()})
		}
	}
	for _, c := range containers {
		if !known[c.id] {
			e.worker.Go(func() { e.containerLost(c) })
		}
	}
	for _, s := range ready {
		rec := s.record()
		for id := range rec.podProcesses() {
			if !known[id] {
				e.worker.Go(func() { e.pauseExited(s, id) })
			}
		}
	}
	return f.Events, nil
}

// containerLost ends a container that the supervisor does not know: it cannot
// be watched any more.
func (e *Engine) containerLost(c *container) {
	e.log.Warn("the supervisor does not know a container", "container", c.id)
	if err := e.killGroup(c.record().Cgroup); err != nil {
		e.log.Error("kill a container that nobody watches", "container", c.id, "error", err)
	}
	e.recordExit(c, exit{at: time.Now(), code: exitUnknown, reason: reasonUnknown, message: lostProcess})
}

// processExited handles one exit. It is told of some twice.
func (e *Engine) processExited(p supervisor.Process) {
	if e.exits.deliver(p) {
		return
	}
	e.mu.Lock()
	pod, _ := handler.PodOfProcess(p.ID)
	c, s := e.containers[p.ID], e.sandboxes[pod]
	e.mu.Unlock()
	switch {
	case c != nil:
		e.worker.Go(func() { e.containerExited(c, p) })
	case s != nil:
		e.worker.Go(func() { e.pauseExited(s, p.ID) })
	}
}

// exit is how a container ended.
type exit struct {
	at      time.Time
	code    int32
	reason  string
	message string
}

// containerExited finds out why a container's process ended and records it.
// What the process left in its cgroup, which can only be if it shared its pid
// namespace, is killed.
func (e *Engine) containerExited(c *container, p supervisor.Process) {
	c.mu.Lock()
	rec := c.rec
	evicted := c.evicted
	if c.startUnderWay {
		c.early = &p
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	if rec.Phase == containerExited {
		return
	}
	x := exit{at: p.ExitedAt, code: int32(p.ExitCode), message: evicted}
	killed := uint64(0)
	if n, err := e.cfg.Cgroups.Group(rec.Cgroup).OOMKills(); err == nil && n > rec.OOMKills {
		killed = n - rec.OOMKills
	}
	oom, err := e.endForHandler(&rec)
	if err != nil {
		e.log.Warn("the handler has not ended a container", "container", c.id, "error", err)
	}
	if oom {
		killed = max(killed, 1)
	}
	switch {
	case p.ExitCode < 0:
		x.code, x.reason = exitUnknown, reasonUnknown
		x.message = "the exit code is not known: the supervisor was not running when the process ended"
	case killed > 0 && p.ExitCode != 0:
		x.reason = reasonOOMKilled
	case p.ExitCode == 0:
		x.reason = reasonCompleted
	default:
		x.reason = reasonError
	}
	if killed > 0 {
		x.message = fmt.Sprintf("the kernel killed %d of the container's processes for its memory limit", killed)
	}
	if err := e.killGroup(rec.Cgroup); err != nil {
		e.log.Warn("processes of an ended container stay", "container", c.id, "error", err)
	}
	e.recordExit(c, x)
}

// leftoverTimeout bounds how long the end of a container waits for processes
// that its first one left behind.
const leftoverTimeout = 10 * time.Second

func (e *Engine) killGroup(path string) error {
	ctx, cancel := context.WithTimeout(e.life, leftoverTimeout)
	defer cancel()
	g := e.cfg.Cgroups.Group(path)
	pids, err := g.Procs()
	if err != nil || len(pids) == 0 {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	return g.Kill(ctx)
}

// recordExit makes the container exited, once.
func (e *Engine) recordExit(c *container, x exit) {
	first := false
	err := e.changeContainer(c, func(r *containerRecord) {
		if r.Phase == containerExited {
			return
		}
		first = true
		r.Phase, r.Pid = containerExited, 0
		r.FinishedAt, r.ExitCode = x.at, x.code
		r.Reason, r.Message = x.reason, x.message
	})
	if err != nil {
		e.log.Error("the end of a container could not be recorded", "container", c.id, "error", err)
	}
	if !first {
		return
	}
	e.log.Info("container ended", "container", c.id, "code", x.code, "reason", x.reason)
	e.containerEvent(c, eventStopped, x.at)
	close(c.exited)
	c.dropRestoring()
	e.tellOfExit(c)
	e.poststopLater(c)
}

// pauseExited makes a sandbox not ready that has lost one of its own processes:
// that of its pid namespace, or its shim.
func (e *Engine) pauseExited(s *sandbox, id string) {
	changed, now, why := false, time.Now(), ""
	err := e.changeSandbox(s, func(r *sandboxRecord) {
		// Some were there to make others, and are done.
		why = r.podProcesses()[id]
		if changed = r.Phase == sandboxReady && why != ""; changed {
			r.Phase, r.StoppedAt, r.Message = sandboxStopping, now, why
		}
	})
	if err != nil {
		e.log.Error("the end of a pod's own process could not be recorded", "pod", s.id, "error", err)
	}
	if changed {
		e.log.Warn("a pod's own process ended", "pod", s.id, "why", why)
		e.sandboxEvent(s, eventStopped, now)
	}
}

// forgetProcess waits until the supervisor has seen the end of a process that
// was killed, and drops it there.
func (e *Engine) forgetProcess(ctx context.Context, id string) error {
	for {
		p, err := e.cfg.Supervisor.Get(ctx, id)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return nil
		case err != nil:
			return err
		case p.State == supervisor.Exited:
			return e.cfg.Supervisor.Forget(ctx, id)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("process %s has not ended: %w", id, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// isGone tells whether the supervisor's error says that a process has ended or
// was never there.
func isGone(err error) bool {
	return errors.Is(err, os.ErrProcessDone) || errors.Is(err, os.ErrNotExist)
}
