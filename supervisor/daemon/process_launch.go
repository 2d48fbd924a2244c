package daemon

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"podstead/oci/launch"
	"podstead/supervisor/internal/crilog"
	"podstead/supervisor/internal/protocol"
)

// checkID refuses IDs that cannot be file names or lines of a log.
func checkID(id string) error {
	ok := id != "" && len(id) <= protocol.MaxID && !strings.HasPrefix(id, ".")
	for _, r := range id {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		ok = ok && (letter || strings.ContainsRune("_.-/", r))
	}
	if !ok {
		return fmt.Errorf("process ID %q: %w", id, errInvalid)
	}
	return nil
}

// launch handles a Launch request. The fork and all that may block happen
// beside the loop. A second request for an ID whose launch is under way waits
// for the same launch.
func (d *daemon) launch(c *conn, seq uint32, req *protocol.LaunchRequest, fds []int) error {
	if p := d.procs[req.ID]; p != nil {
		protocol.CloseFds(fds)
		if p.launching == nil {
			return fmt.Errorf("launch %s: it is %s: %w", req.ID, p.State, errExist)
		}
		p.launching = append(p.launching, asked{c, seq})
		return nil
	}
	if protocol.IsCommand(req.Program) {
		if err := d.adopt(); err != nil {
			protocol.CloseFds(fds)
			return fmt.Errorf("launch %s: %w", req.ID, err)
		}
	}
	p := &process{
		Process:   protocol.Process{ID: req.ID, Console: req.Terminal},
		Log:       req.Log,
		StdinOnce: req.StdinOnce,
		once:      req.Once,
		stdin:     -1,
		reaps:     true,
		attached:  map[*attachment]bool{},
	}
	p.launching = []asked{{c, seq}}
	d.procs[req.ID] = p
	d.forks++
	go func() {
		enlargeStack()
		err := d.fork(p, req, fds)
		d.post(func() {
			d.forks--
			d.launched(p, err)
		})
	}()
	return nil
}

// enlargeStack gives the goroutine of a fork the stack that it is going to need, as
// long as there is little on it to be copied.
//
//go:noinline
func enlargeStack() byte {
	var room [6 << 10]byte
	return room[len(os.Args)%len(room)]
}

// fork makes the process and its stdio; on an error nothing is left of it.
func (d *daemon) fork(p *process, req *protocol.LaunchRequest, fds []int) (err error) {
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		files[i] = os.NewFile(uintptr(fd), "slot "+strconv.Itoa(i))
	}
	std := launchStdio{outs: [2]int{-1, -1}}
	closeTheirs := func() { // the child has its copies
		for _, f := range files {
			f.Close()
		}
		for _, f := range std.made {
			f.Close()
		}
	}
	defer func() {
		closeTheirs()
		if err != nil {
			std.undo()
		}
	}()
	slots := len(files)
	opt := launch.ForkOptions{Start: req.Start, Forker: d.forker}
	if req.Hooks && slots > 0 {
		slots--
		opt.AtPoint = hooksBy(files[slots], launch.PointCreated)
	} else if req.Start {
		opt.NoWait = req.Once && !req.Logged
		opt.Cloned = func(c *launch.Child) { // work for while the child is at its own
			closeTheirs()
			written := make(chan struct{})
			d.post(func() {
				d.recordEarly(p, c.Pid, c.StartTime)
				close(written)
			})
			<-written
		}
	}
	for i := 2; i >= 0; i-- {
		if req.Stdio[i] && slots > 0 {
			slots--
			std.ends[i] = files[slots]
		}
	}
	if req.Logged {
		if err := std.make(p, req); err != nil {
			return err
		}
	}
	opt.Stdio = launch.Stdio{Stdin: std.ends[0], Stdout: std.ends[1], Stderr: std.ends[2]}
	forked, err := d.cfg.Fork.Fork(req.Program, files[:slots:slots], opt)
	if err != nil {
		return err
	}
	p.Pid, p.StartTicks, p.pidfd = forked.Pid, forked.StartTicks, forked.Pidfd
	p.alone = forked.Alone
	if forked.Child == nil {
		if !p.recorded {
			p.StartedAt = time.Now()
		}
	} else {
		p.child, p.control, p.program = forked.Child, forked.Control, req.Program
	}
	p.Warnings = forked.Warnings
	if forked.Console != nil {
		if err := d.keepConsole(p, forked.Console, req.Logged, &std.outs); err != nil {
			return errors.Join(err, p.kill())
		}
	}
	if req.Logged {
		p.io = newStdio(d, p, std.log, std.outs, forked.Console != nil)
		p.pipes = [3]uint64{pipeInode(p.stdin), pipeInode(std.outs[0]), pipeInode(std.outs[1])}
	}
	return nil
}

// launchStdio is the stdio of a process that is being launched.
type launchStdio struct {
	ends [3]*os.File    // the process's
	made []*os.File     // those of them that are not the request's
	log  *crilog.Writer // of one that is logged, nil without a file
	outs [2]int         // what the supervisor reads, -1 for none
	ours []int          // the supervisor's ends of pipes
}

// make opens the log, and makes pipes for a process without a terminal.
func (s *launchStdio) make(p *process, req *protocol.LaunchRequest) (err error) {
	if req.Log.Path != "" {
		if s.log, err = crilog.Open(crilog.Options(req.Log)); err != nil {
			return err
		}
	}
	if req.Terminal {
		return nil
	}
	if p.stdin, s.outs, s.ends, err = makePipes(req.Stdin, req.StdinOnce); err != nil {
		return err
	}
	s.ours = []int{p.stdin, s.outs[0], s.outs[1]}
	for _, f := range s.ends {
		if f != nil {
			s.made = append(s.made, f)
		}
	}
	return nil
}

// undo closes what is the supervisor's, when there is no process.
func (s *launchStdio) undo() {
	protocol.CloseFds(s.ours)
	if s.log != nil {
		s.log.Close()
	}
}

// keepConsole takes over a pty's master: one descriptor to read, one to write
// to and to resize. Without a log only the latter, until it was handed out.
func (d *daemon) keepConsole(p *process, console *os.File, logged bool, outs *[2]int) error {
	defer console.Close()
	var err error
	if p.stdin, err = unix.FcntlInt(console.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return fmt.Errorf("copy pty: %w", err)
	}
	if !logged {
		return nil
	}
	if outs[0], err = unix.FcntlInt(console.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return fmt.Errorf("copy pty: %w", err)
	}
	return unix.SetNonblock(outs[0], true)
}

// kill ends a process whose launch cannot be finished.
func (p *process) kill() error {
	err := unix.PidfdSendSignal(int(p.pidfd.Fd()), unix.SIGKILL, nil, 0)
	for {
		werr := unix.Waitid(unix.P_PIDFD, int(p.pidfd.Fd()), nil, unix.WEXITED, nil)
		if werr != unix.EINTR {
			p.pidfd.Close()
			return errors.Join(err, werr)
		}
	}
}

// makePipes makes a process's stdio; ends are the process's.
//
// The process gets its outputs open for reading too: so the pipe has a reader
// even while no supervisor runs, and a supervisor that was killed costs its
// containers no SIGPIPE; the next one opens the pipe through /proc. Likewise
// an input that nobody is going to close is open for writing too.
func makePipes(stdin, stdinOnce bool) (in int, outs [2]int, ends [3]*os.File, err error) {
	in, outs = -1, [2]int{-1, -1}
	defer func() {
		if err != nil {
			protocol.CloseFds([]int{in, outs[0], outs[1]})
			for _, f := range ends {
				if f != nil {
					f.Close()
				}
			}
		}
	}()
	if stdin {
		if ends[0], in, err = makePipe("stdin", 0, !stdinOnce); err != nil {
			return in, outs, ends, err
		}
	}
	for i, name := range []string{"stdout", "stderr"} {
		if ends[i+1], outs[i], err = makePipe(name, 1, true); err != nil {
			return in, outs, ends, err
		}
	}
	return in, outs, ends, nil
}

// makePipe makes a pipe whose end theirs (0 reads, 1 writes) is the process's,
// open for both ways if both is set. Ours is non-blocking.
func makePipe(name string, theirs int, both bool) (their *os.File, our int, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, -1, fmt.Errorf("make %s pipe: %w", name, err)
	}
	our = fds[1-theirs]
	fd := fds[theirs]
	if both {
		fd, err = unix.Open("/proc/self/fd/"+strconv.Itoa(fds[theirs]), unix.O_RDWR|unix.O_CLOEXEC, 0)
		unix.Close(fds[theirs])
	}
	if err == nil {
		their = os.NewFile(uintptr(fd), name)
		err = unix.SetNonblock(our, true)
	}
	if err != nil {
		unix.Close(our)
		if their != nil {
			their.Close()
		}
		return nil, -1, fmt.Errorf("make %s pipe: %w", name, err)
	}
	return their, our, nil
}

func newStdio(d *daemon, p *process, log *crilog.Writer, outs [2]int, pty bool) *stdio {
	s := &stdio{strand: strand{pool: d.pool}, d: d, p: p, log: log}
	for i, fd := range outs {
		if fd >= 0 {
			s.outputs[i] = &output{fd: fd, stream: crilog.Stream(i), pty: pty}
		}
	}
	return s
}

// launched takes a forked process into the loop, or reports why there is none.
func (d *daemon) launched(p *process, err error) {
	if err == nil && p.alone != nil {
		if err = d.leaveAlone(p); err == nil {
			return
		}
	}
	if err == nil {
		p.State = created
		if p.child == nil {
			p.State = running
		}
		err = d.watchProcess(p)
	}
	if err != nil {
		d.launchFailed(p, err)
		return
	}
	if p.cancelled {
		d.discard(p, fmt.Errorf("launch %s: killed meanwhile: %w", p.ID, errGone))
		return
	}
	if !p.recorded || p.io != nil || len(p.Warnings) > 0 {
		d.writeRecord(p)
	}
	d.launchEnded(p, nil)
	d.sweep()
}

// launchFailed forgets a process that is not there.
func (d *daemon) launchFailed(p *process, err error) {
	delete(d.procs, p.ID)
	d.removeRecord(p)
	d.launchEnded(p, err)
	d.sweep()
}

// recordEarly writes the record of a process that is on its way to its image. A
// supervisor after this one, if it is killed now, finds it there or gone.
func (d *daemon) recordEarly(p *process, pid int, startTicks uint64) {
	p.recorded = true
	if p.StartedAt.IsZero() {
		p.StartedAt = time.Now()
	}
	early := *p
	early.State, early.Pid, early.StartTicks = running, pid, startTicks
	d.writeRecord(&early)
}

// discard kills a process and forgets it when it is dead; its launch has
// failed with err.
func (d *daemon) discard(p *process, err error) {
	p.discarded, p.startErr = true, err
	if p.pidfd != nil {
		unix.PidfdSendSignal(int(p.pidfd.Fd()), unix.SIGKILL, nil, 0)
	}
}

func (d *daemon) launchEnded(p *process, err error) {
	waiters := p.launching
	p.launching = nil
	h, fds := p.handle()
	for _, a := range waiters {
		if err != nil {
			a.conn.answer(a.seq, nil, err)
		} else {
			a.conn.answer(a.seq, h, nil, fds...)
		}
	}
	if p.io == nil && p.stdin >= 0 { // a pty that its client has now
		p.closeStdin()
	}
}

// watchProcess watches for the exit and the outputs. On an error the process
// is killed.
func (d *daemon) watchProcess(p *process) error {
	var err error
	if p.io != nil {
		err = p.io.watch()
	}
	if err == nil {
		err = d.watchExit(p)
	}
	if err == nil {
		return nil
	}
	err = errors.Join(fmt.Errorf("launch %s: %w", p.ID, err), p.kill())
	p.closeStdin()
	if p.io != nil {
		p.io.abandon()
	}
	return err
}

// watchExit watches for the exit.
func (d *daemon) watchExit(p *process) (err error) {
	p.token, err = d.poll.add(int(p.pidfd.Fd()), unix.EPOLLIN, func(uint32) { d.pidfdReady(p) })
	return err
}
