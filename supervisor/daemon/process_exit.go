package daemon

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"podstead/supervisor/internal/protocol"
)

// unknownExit is the exit code if the kernel could not tell.
const unknownExit = -1

// pidfdReady is called when a process has died.
func (d *daemon) pidfdReady(p *process) {
	if p.exitSeen {
		return
	}
	code, dead := exitStatus(int(p.pidfd.Fd()), p.Pid, p.reaps)
	if !dead {
		return
	}
	p.exitSeen, p.ExitCode, p.ExitedAt = true, code, time.Now()
	d.poll.remove(int(p.pidfd.Fd()), p.token)
	p.pidfd.Close()
	p.pidfd = nil
	if p.alone != nil && !d.endedAlone(p) {
		return
	}
	if !p.starting {
		d.drainExited(p)
	}
}

// exitStatus reaps a dead child and returns its exit code. Of one that is not
// ours, the kernel tells.
func exitStatus(pidfd, pid int, reaps bool) (code int, dead bool) {
	if !reaps {
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0); n != 1 || err != nil {
			return 0, false
		}
		if code, ok := pidfdExit(pidfd, pid); ok {
			return code, true
		}
		return unknownExit, true
	}
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PIDFD, pidfd, &info, unix.WEXITED|unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return unknownExit, true
		}
		return siginfoExit(&info)
	}
}

// drainExited waits for the last output, then makes the exit known.
func (d *daemon) drainExited(p *process) {
	if p.io == nil {
		d.exitKnown(p)
		return
	}
	p.io.drain(func() { d.exitKnown(p) })
}

func (d *daemon) exitKnown(p *process) {
	p.State = exited
	if p.child != nil {
		p.child.Abandon()
		p.child, p.control, p.program = nil, nil, nil
	}
	p.closeStdin()
	if p.discarded {
		d.erase(p)
		d.launchEnded(p, p.startErr)
		return
	}
	// A launch that was not answered yet is told so.
	told := false
	var asked []*conn
	for _, a := range p.launching {
		told, asked = told || !a.conn.closed, append(asked, a.conn)
	}
	d.launchEnded(p, nil)
	for c := range d.conns {
		if c.watching && !slices.Contains(asked, c) {
			c.send(&protocol.Packet{Op: protocol.Event, Seq: c.watch, Body: protocol.Encode(&p.Process)})
			told = told || !c.closed
		}
	}
	if told && p.once {
		d.erase(p)
		return
	}
	d.writeRecord(p)
}
