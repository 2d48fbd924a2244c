package daemon

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"podstead/supervisor/internal/protocol"
	"podstead/sys"
)

// engine is the child that the supervisor keeps running for a front.
//
//	idle ──RunEngine──▶ running ──dies──▶ waiting ──back-off──▶ running
//	  ▲                    └───StopEngine: SIGTERM, SIGKILL──┐
//	  └───────────────────────────────────────────dies───────┘
type engine struct {
	req    *protocol.EngineRequest // nil: none is wanted
	out    [2]int                  // its stdout and stderr
	pid    int                     // 0: does not run
	ticks  uint64                  // when it started, see sys.StartTime
	pidfd  int
	token  token
	reaps  bool // it is our child
	begun  time.Time
	delay  time.Duration
	timer  *time.Timer
	exits  int // to tell timers of an earlier life
	code   int
	ending bool
	killed bool // it did not end within its grace

	front    *conn // who hears how it goes; nil: the front is gone
	frontSeq uint32
	stopping []func()
}

const (
	engineDelayMin = 100 * time.Millisecond
	engineDelayMax = 5 * time.Second
	engineIsWell   = 10 * time.Second // resets the delay
)

// runEngine handles RunEngine.
func (d *daemon) runEngine(c *conn, seq uint32, req *protocol.EngineRequest, fds []int) error {
	e := &d.engine
	if len(fds) != 2 || len(req.Argv) == 0 {
		return fmt.Errorf("run engine: %d descriptors, %d arguments: %w", len(fds), len(req.Argv), errInvalid)
	}
	switch {
	case e.ending:
		return fmt.Errorf("run engine: it is being stopped: %w", protocol.ErrBusy)
	case e.front != nil:
		return fmt.Errorf("run engine: process %d runs it: %w", e.front.pid, protocol.ErrBusy)
	case e.req != nil && !req.Adopt:
		return fmt.Errorf("run engine: it runs already: %w", protocol.ErrBusy)
	}
	e.front, e.frontSeq = c, seq
	protocol.CloseFds(e.out[:])
	// An engine that runs keeps its own output; the next one gets the new front's.
	e.req, e.out = req, [2]int{fds[0], fds[1]}
	d.stopping = false
	d.writeEngine()
	if e.pid != 0 {
		d.engineRuns()
		return nil
	}
	e.delay = 0
	d.spawnEngine()
	return nil
}

// engineRuns tells the front.
func (d *daemon) engineRuns() {
	e := &d.engine
	if e.front != nil {
		body := protocol.Encode(&protocol.Number{N: int64(e.pid)})
		e.front.send(&protocol.Packet{Op: protocol.Event, Seq: e.frontSeq, Body: body})
	}
}

func (d *daemon) spawnEngine() {
	e := &d.engine
	if e.timer != nil {
		e.timer.Stop()
		e.timer = nil
	}
	if e.pid != 0 || e.req == nil || d.quiet {
		return
	}
	pidfd := -1
	attr := &syscall.ProcAttr{
		Dir:   e.req.Dir,
		Env:   append(slices.Clip(protocol.SmallPages(e.req.Env)), protocol.SupervisedEnv+"="+d.cfg.RunDir),
		Files: []uintptr{d.forker.Null().Fd(), uintptr(e.out[0]), uintptr(e.out[1])},
		Sys:   &syscall.SysProcAttr{PidFD: &pidfd, Setpgid: true},
	}
	e.begun = time.Now()
	pid, err := syscall.ForkExec(e.req.Argv[0], e.req.Argv, attr)
	if err != nil {
		d.log.Error("start engine", "argv0", e.req.Argv[0], "err", err)
		e.code = 127
		if e.exits == 0 { // it never ran: its front shall hear why
			d.engineEnded(fmt.Errorf("start engine: %w", &os.PathError{Op: "exec", Path: e.req.Argv[0], Err: err}))
			return
		}
		d.respawnLater()
		return
	}
	e.pid, e.pidfd, e.reaps = pid, pidfd, true
	if e.pidfd < 0 {
		e.pidfd, _ = unix.PidfdOpen(pid, 0)
	}
	e.ticks, _ = sys.StartTime(pid)
	d.log.Info("engine runs", "pid", pid)
	d.writeEngine()
	if e.token, err = d.poll.add(e.pidfd, unix.EPOLLIN, func(uint32) { d.engineReady() }); err != nil {
		d.log.Error("watch engine", "err", errors.Join(err, d.adopt())) // SIGCHLD will tell
	}
	d.engineRuns()
}

// engineReady is called when the engine has died.
func (d *daemon) engineReady() {
	e := &d.engine
	if e.pid == 0 {
		return
	}
	code, dead := exitStatus(e.pidfd, e.pid, e.reaps)
	if !dead {
		return
	}
	d.log.Info("engine ended", "pid", e.pid, "code", code)
	if code == unknownExit && e.ending && !e.killed {
		code = 0 // not our child, and the kernel is before 6.15: it ended as it was asked to
	}
	d.poll.remove(e.pidfd, e.token)
	unix.Close(e.pidfd)
	e.pid, e.pidfd, e.token, e.code = 0, -1, 0, code
	e.exits++
	if e.req == nil || e.ending || d.stopping {
		d.engineEnded(nil)
		return
	}
	d.respawnLater()
}

func (d *daemon) respawnLater() {
	e := &d.engine
	if time.Since(e.begun) >= engineIsWell {
		e.delay = 0
	}
	e.delay = min(max(2*e.delay, engineDelayMin), engineDelayMax)
	life := e.exits
	e.timer = time.AfterFunc(e.delay, func() {
		d.post(func() {
			if d.engine.exits == life {
				d.spawnEngine()
			}
		})
	})
	d.writeEngine()
}

// engineEnded answers everybody: no engine is wanted any more.
func (d *daemon) engineEnded(err error) {
	e := &d.engine
	if e.front != nil {
		e.front.answer(e.frontSeq, &protocol.Number{N: int64(e.code)}, err)
	}
	for _, done := range e.stopping {
		done()
	}
	if e.timer != nil {
		e.timer.Stop()
	}
	protocol.CloseFds(e.out[:])
	exits := e.exits
	d.engine = engine{out: [2]int{-1, -1}, pidfd: -1, exits: exits + 1}
	d.removeEngine()
}

// stopEngine handles StopEngine: no restart, SIGTERM, and SIGKILL after grace.
func (d *daemon) stopEngine(grace time.Duration, done func()) {
	e := &d.engine
	if e.req == nil {
		done()
		return
	}
	e.stopping = append(e.stopping, done)
	if e.ending {
		return
	}
	e.ending = true
	if e.pid == 0 {
		d.engineEnded(nil)
		return
	}
	unix.PidfdSendSignal(e.pidfd, unix.SIGTERM, nil, 0)
	life := e.exits
	e.timer = time.AfterFunc(grace, func() {
		d.post(func() {
			if d.engine.exits == life && d.engine.pid != 0 {
				d.log.Warn("engine does not end: killed", "pid", d.engine.pid, "grace", grace)
				d.engine.killed = true
				unix.PidfdSendSignal(d.engine.pidfd, unix.SIGKILL, nil, 0)
			}
		})
	})
}

// frontGone is called when a connection ends: if it was the engine's front,
// the engine goes on, and another front may adopt it.
func (d *daemon) frontGone(c *conn) {
	if d.engine.front == c {
		d.engine.front = nil
		d.log.Warn("front is gone, engine goes on", "pid", c.pid)
	}
}
