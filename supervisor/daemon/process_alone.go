package daemon

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"podstead/sys"
)

// youth is how long a process that is dropped when its exit was told is left
// alone after its start: it gets no record, and its launch no answer, which would
// take the processor from it and from who waits for it. Most of what is exec'd in
// a container, probes above all, ends within it.
const youth = 5 * time.Millisecond

// leaveAlone watches for the end of a process on its way to its image, and for
// nothing else. If it ends soon, that is the answer to its launch.
func (d *daemon) leaveAlone(p *process) error {
	if err := d.watchExit(p); err != nil {
		p.alone.Control.Close()
		return errors.Join(fmt.Errorf("launch %s: %w", p.ID, err), p.kill())
	}
	if p.cancelled {
		p.killAlone()
	}
	p.young = time.AfterFunc(youth, func() { d.post(func() { d.grownUp(p) }) })
	return nil
}

func (p *process) killAlone() {
	unix.PidfdSendSignal(int(p.pidfd.Fd()), unix.SIGKILL, nil, 0)
}

// endedAlone is called when a process that was left alone has ended; it tells
// whether it has executed its image.
func (d *daemon) endedAlone(p *process) bool {
	p.young.Stop()
	err := p.alone.Ended()
	if p.cancelled {
		err = fmt.Errorf("launch %s: killed meanwhile: %w", p.ID, errGone)
	}
	p.Warnings, p.alone = p.alone.Warnings, nil
	if err != nil {
		d.launchFailed(p, err)
		return false
	}
	p.State = running
	return true
}

// grownUp has a process that takes longer go the way of all others.
func (d *daemon) grownUp(p *process) {
	c := p.alone
	if c == nil {
		return // it has ended
	}
	p.alone = nil
	d.poll.remove(int(p.pidfd.Fd()), p.token)
	d.forks++
	go func() {
		ticks, err := sys.StartTime(p.Pid)
		if err == nil {
			d.post(func() { d.recordEarly(p, p.Pid, ticks) })
			err = c.Outcome()
		} else {
			c.Control.Close()
		}
		if err != nil {
			err = errors.Join(err, p.kill())
		}
		d.post(func() {
			d.forks--
			p.StartTicks, p.Warnings = ticks, c.Warnings
			d.launched(p, err)
		})
	}()
}
