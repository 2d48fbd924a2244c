package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"podstead/supervisor/internal/protocol"
)

// An upgrade replaces the program by execve: same process, same children, and
// the same descriptors; what is to be known about them goes along in a memfd.
//
//	quiet: nothing new is begun; what is under way ends  (prepareUpgrade)
//	the new program reads the state, as a trial          (tryState)
//	execve                                               (executeUpgrade)
//	the new program takes over                           (restore)
//
// Up to the execve a failure just ends the quiet.
type upgrade struct {
	exe      string
	done     func(error)
	deadline time.Time
	conn     *conn // who asked, nil: a signal
	seq      uint32
}

// upgradePatience bounds the quiet: something under way may be stuck.
const upgradePatience = 10 * time.Second

// beginUpgrade stops all new work, and waits for what is under way.
func (d *daemon) beginUpgrade(u *upgrade) {
	if d.upgrade != nil {
		u.done(fmt.Errorf("upgrade: one is under way: %w", errExist))
		return
	}
	if u.exe == "" {
		u.exe = d.exe
	}
	u.deadline = time.Now().Add(upgradePatience)
	d.upgrade, d.quiet = u, true
	d.poll.arm(d.listener, d.listenToken, 0)
	for c := range d.conns {
		d.poll.arm(c.fd, c.token, 0)
	}
	d.prepareUpgrade()
}

// prepareUpgrade goes on once nothing is under way.
func (d *daemon) prepareUpgrade() {
	busy := d.busyWith()
	if busy == "" {
		d.endUpgrade(d.executeUpgrade()) // returns only if it failed
		return
	}
	if time.Now().After(d.upgrade.deadline) {
		d.endUpgrade(fmt.Errorf("upgrade: %s does not end", busy))
		return
	}
	time.AfterFunc(2*time.Millisecond, func() { d.post(d.prepareUpgrade) })
}

// busyWith names something that an upgrade must wait for.
func (d *daemon) busyWith() string {
	if d.forks > 0 {
		return "a launch or a start"
	}
	for _, p := range d.procs {
		switch {
		case p.State == "" || p.starting || p.launching != nil:
			return "the launch of " + p.ID
		case p.exitSeen && p.State != exited:
			return "the output of " + p.ID
		}
	}
	switch {
	case d.engine.ending:
		return "the engine's stop"
	case !d.pool.idle():
		return "a write to a log"
	case len(d.posts) > 0:
		return "the loop"
	}
	return ""
}

// endUpgrade goes on with the old program.
func (d *daemon) endUpgrade(err error) {
	u := d.upgrade
	d.upgrade, d.quiet = nil, false
	d.poll.arm(d.listener, d.listenToken, unix.EPOLLIN)
	for c := range d.conns {
		d.poll.arm(c.fd, c.token, unix.EPOLLIN)
		c.flush()
	}
	for _, p := range d.procs {
		if p.io != nil {
			p.io.rearm()
		}
	}
	if d.engine.req != nil && d.engine.pid == 0 {
		d.respawnLater()
	}
	u.done(err)
}

func (d *daemon) executeUpgrade() error {
	s := d.save()
	memfd, err := s.toMemfd()
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	defer unix.Close(memfd)
	if err := d.tryState(d.upgrade.exe, memfd); err != nil {
		return err
	}
	fds := append(s.descriptors(), memfd)
	keepAcrossExec(fds, true)
	argv := []string{d.upgrade.exe, "daemon", "--run", d.cfg.RunDir, "--state", strconv.Itoa(memfd)}
	err = syscall.Exec(d.upgrade.exe, argv, os.Environ())
	keepAcrossExec(fds, false)
	return fmt.Errorf("upgrade: %w", &os.PathError{Op: "exec", Path: d.upgrade.exe, Err: err})
}

func keepAcrossExec(fds []int, keep bool) {
	flag := unix.FD_CLOEXEC
	if keep {
		flag = 0
	}
	for _, fd := range fds {
		if fd > 2 {
			unix.FcntlInt(uintptr(fd), unix.F_SETFD, flag)
		}
	}
}

// tryState lets the new program read the state before it is too late.
func (d *daemon) tryState(exe string, memfd int) error {
	dup, err := unix.FcntlInt(uintptr(memfd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	f := os.NewFile(uintptr(dup), "state")
	defer f.Close()
	ctx, cancel := context.WithTimeout(context.Background(), upgradePatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, exe, "daemon", "--run", d.cfg.RunDir, "--state", "3", "--check")
	cmd.ExtraFiles = []*os.File{f}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("upgrade: %s cannot read the state: %w: %.500s", exe, err, out)
	}
	return nil
}

// CheckState reads a state without taking over.
func CheckState(memfd int) error {
	b, err := protocol.ReadMemfd(memfd)
	if err == nil {
		_, err = decodeState(b)
	}
	return err
}

func (s *savedState) toMemfd() (int, error) {
	memfd, err := unix.MemfdCreate("podstead-supervisor-state", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("memfd_create: %w", err)
	}
	if err := protocol.WriteFull(memfd, protocol.Encode(s)); err != nil {
		unix.Close(memfd)
		return -1, fmt.Errorf("write state: %w", err)
	}
	return memfd, nil
}

// save packs everything.
func (d *daemon) save() *savedState {
	s := &savedState{Version: stateVersion, Lock: int(d.lock.Fd()), Listener: d.listener, Stopping: d.stopping}
	index := map[*conn]int{}
	for c := range d.conns {
		if len(c.queue) > 0 {
			c.close(errors.New("client does not read during an upgrade"))
			continue
		}
		index[c] = len(s.Conns)
		s.Conns = append(s.Conns, savedConn{Fd: c.fd, Pid: c.pid, Watch: int(c.watch), Watching: c.watching})
	}
	if i, ok := index[d.upgrade.conn]; ok {
		s.UpgradeConn, s.UpgradeSeq = i+1, int(d.upgrade.seq)
	}
	for _, p := range d.procs {
		saved := p.save()
		p.saveOutputs(&saved)
		for a := range p.attached {
			if i, ok := index[a.conn]; ok {
				saved.Attached = append(saved.Attached, savedAttachment{Conn: i, Seq: int(a.seq), Stdin: a.stdin, Outs: a.outs})
			}
		}
		s.Procs = append(s.Procs, saved)
	}
	for name, fds := range d.stored {
		s.Stored = append(s.Stored, savedStore{name, fds})
	}
	s.Engine = d.engine.save()
	if i, ok := index[d.engine.front]; ok {
		s.Engine.FrontConn, s.Engine.FrontSeq = i+1, int(d.engine.frontSeq)
	}
	return s
}

func (e *engine) save() savedEngine {
	s := savedEngine{Wanted: e.req != nil, Pid: e.pid, StartTicks: e.ticks, Begun: e.begun, Delay: int64(e.delay),
		Out: e.out, Pidfd: e.pidfd, Reaps: e.reaps, Exits: e.exits}
	if e.req != nil {
		s.Request = *e.req
	}
	return s
}

// restore takes over from the program before the upgrade.
func (d *daemon) restore(memfd int) error {
	b, err := protocol.ReadMemfd(memfd)
	unix.Close(memfd)
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	s, err := decodeState(b)
	if err != nil {
		return err
	}
	keepAcrossExec(s.descriptors(), false)
	d.lock, d.stopping = os.NewFile(uintptr(s.Lock), protocol.LockName), s.Stopping
	if err := d.serve(s.Listener); err != nil {
		return err
	}
	conns := make([]*conn, len(s.Conns))
	for i, sc := range s.Conns {
		if conns[i], err = d.addConn(sc.Fd, sc.Pid); err != nil {
			return err
		}
		conns[i].watch, conns[i].watching = uint32(sc.Watch), sc.Watching
	}
	for i := range s.Procs {
		if err := d.restoreProcess(&s.Procs[i], conns); err != nil {
			// One lost container must not cost the others.
			d.log.Error("take over after upgrade", "process", s.Procs[i].Process.ID, "err", err)
		}
	}
	for _, st := range s.Stored {
		d.stored[st.Name] = st.Fds
	}
	d.restoreEngine(&s.Engine, conns)
	if s.UpgradeConn > 0 {
		conns[s.UpgradeConn-1].answer(uint32(s.UpgradeSeq), nil, nil)
	}
	d.log.Info("upgraded", "processes", len(d.procs), "clients", len(conns))
	return nil
}

func (d *daemon) restoreProcess(s *savedProcess, conns []*conn) error {
	p := newProcess(s)
	p.stdin = s.Stdin
	d.procs[p.ID] = p
	if s.Logged {
		log, err := s.restoreLog()
		if err != nil {
			d.log.Error("log after upgrade", "process", p.ID, "err", err)
		}
		p.io = newStdio(d, p, log, s.Outputs, s.Pty)
		p.io.exited = s.Drained
		for _, a := range s.Attached {
			p.io.restoreAttachment(a, conns[a.Conn])
		}
		if err := p.io.watch(); err != nil {
			return err
		}
		if log != nil {
			p.io.do(func(*scratch) { p.io.noteLost() })
		}
	}
	if s.Pidfd < 0 {
		return nil
	}
	p.pidfd = os.NewFile(uintptr(s.Pidfd), "pidfd")
	if s.Control >= 0 {
		p.control = os.NewFile(uintptr(s.Control), "control")
		var err error
		p.child, err = d.cfg.Fork.Adopt(s.Program, &Forked{Pid: p.Pid, StartTicks: p.StartTicks, Pidfd: p.pidfd, Control: p.control})
		if err != nil {
			return err
		}
	}
	return d.watchExit(p)
}

func (s *stdio) restoreAttachment(saved savedAttachment, c *conn) {
	a := &attachment{conn: c, seq: uint32(saved.Seq), p: s.p, stdin: saved.Stdin, outs: saved.Outs}
	s.p.attached[a] = true
	c.attached[a.seq] = a
	s.attached = append(s.attached, a)
}

func (d *daemon) restoreEngine(s *savedEngine, conns []*conn) {
	e := &d.engine
	if !s.Wanted {
		return
	}
	*e = engine{req: &s.Request, out: s.Out, pid: s.Pid, ticks: s.StartTicks, pidfd: s.Pidfd, reaps: s.Reaps,
		begun: s.Begun, delay: time.Duration(s.Delay), exits: s.Exits}
	if s.FrontConn > 0 {
		e.front, e.frontSeq = conns[s.FrontConn-1], uint32(s.FrontSeq)
	}
	if e.pid == 0 {
		d.respawnLater()
		return
	}
	var err error
	if e.token, err = d.poll.add(e.pidfd, unix.EPOLLIN, func(uint32) { d.engineReady() }); err != nil {
		d.log.Error("watch engine", "err", err)
	}
}
