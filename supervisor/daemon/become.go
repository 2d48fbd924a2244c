package daemon

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"podstead/supervisor/internal/crilog"
	"podstead/supervisor/internal/protocol"
	"podstead/sys"
)

// serveBecome makes another child the process of an ID. The one before is
// nobody's then, and reaped when it ends.
func (d *daemon) serveBecome(r *request) (protocol.Coded, bool, error) {
	var req protocol.BecomeRequest
	if err := r.decode(&req); err != nil {
		return nil, false, err
	}
	p, err := d.process(req.ID)
	if err != nil {
		return nil, false, err
	}
	if err := d.become(p, req.Pid, r.takeFds()); err != nil {
		return nil, false, fmt.Errorf("become %s: %w", req.ID, err)
	}
	h, fds := p.handle()
	r.c.answer(r.Seq, h, nil, fds...)
	return nil, true, nil
}

func (d *daemon) become(p *process, pid int, fds []int) error {
	defer protocol.CloseFds(fds)
	if p.State != running || p.exitSeen || !p.reaps {
		return fmt.Errorf("it is %s: %w", p.State, errInvalid)
	}
	for _, other := range d.procs {
		if other.Pid == pid && !other.exitSeen {
			return fmt.Errorf("process %d is that of %s: %w", pid, other.ID, errExist)
		}
	}
	if len(fds) > 1 || len(fds) == 1 && (p.io == nil || !p.Console || p.stdin >= 0) {
		return fmt.Errorf("it expects no terminal: %w", errInvalid)
	}
	pidfd, err := sys.OpenPidfd(pid, 0)
	if err != nil {
		return err
	}
	ticks, err := sys.StartTime(pid)
	if err == nil {
		err = checkOwnChild(pid)
	}
	if err == nil && len(fds) == 1 {
		err = d.lateConsole(p, fds[0])
	}
	if err != nil {
		pidfd.Close()
		return err
	}
	before, token := p.pidfd, p.token
	p.pidfd = pidfd
	if err := d.watchExit(p); err != nil {
		p.pidfd, p.token = before, token
		pidfd.Close()
		return err
	}
	d.poll.remove(int(before.Fd()), token)
	before.Close()
	p.Pid, p.StartTicks = pid, ticks
	d.writeRecord(p)
	return nil
}

// checkOwnChild: only a child's exit can be known for sure, and any other
// process of the host is none of ours.
func checkOwnChild(pid int) error {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return err
	}
	_, f := sys.ParseStat(b)
	if len(f) < 2 || f[1] != strconv.Itoa(os.Getpid()) {
		return fmt.Errorf("process %d is no child: %w", pid, errInvalid)
	}
	return nil
}

// lateConsole takes over the pty of a process that was launched without one.
func (d *daemon) lateConsole(p *process, fd int) error {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("copy pty: %w", err)
	}
	outs := [2]int{-1, -1}
	if err := d.keepConsole(p, os.NewFile(uintptr(dup), "pty"), true, &outs); err != nil {
		return err
	}
	o := &output{fd: outs[0], stream: crilog.Stream(0), pty: true}
	o.token, err = d.poll.add(o.fd, outputReady, func(uint32) {
		if !d.quiet {
			p.io.do(func(mem *scratch) { p.io.pump(o, mem) })
		}
	})
	if err != nil {
		unix.Close(o.fd)
		return fmt.Errorf("watch output: %w", err)
	}
	// The strand's jobs come in order: this is before any that the poller makes.
	p.io.do(func(*scratch) { p.io.outputs[0] = o })
	return nil
}
