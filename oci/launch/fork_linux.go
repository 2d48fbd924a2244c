package launch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"podstead/sys"
)

// prepareTimeout bounds how long a child may take to be prepared, and to get
// from its start to execve. A mount of a dead network file system would
// otherwise hold the forker's goroutine for ever.
const prepareTimeout = 60 * time.Second

// ErrTimeout is in the error of a child that did not get on in time. The child
// was killed.
var ErrTimeout = errors.New("timed out")

// Stdio are the child's descriptors 0, 1 and 2; nil means /dev/null. With a
// terminal they must be nil.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File
}

// Child is a forked process that executes a program. It is not safe for
// concurrent use. Either Start or Abandon must be called, once.
type Child struct {
	Pid       int      // in the forker's pid namespace
	Pidfd     *os.File // owned by the caller of Fork
	Console   *os.File // pty master or nil; owned by the caller of Fork
	StartTime uint64   // clock ticks since boot, see sys.StartTime
	// Control is the socket that the prepared child waits on. A forker that
	// replaces itself by execve hands it on and calls Adopt afterwards; if all
	// copies are closed, the child exits.
	Control *os.File
	// Warnings name the steps that were passed over, such as an oom_score_adj
	// that needs more privilege than there is.
	Warnings []string

	// AtPoint is called when the child has reached a point of Options.Hooks; an
	// error ends the child. A child of Adopt needs it set before Start.
	AtPoint func(*Child, Point) error

	// AtListener is given the listener of a seccomp filter that has one
	// (Options.Listener), before anything is executed; it must not keep it. An error
	// ends the child. A child of Adopt needs it set before Start.
	AtListener func(*Child, *os.File) error

	program   *Program
	forker    *Forker
	mapIDs    func(pid int, uid, gid string) error // nil: by the files of /proc
	executing bool
	listened  bool // the listener was handed over
	alone     bool // nobody follows it on its way, see ForkOptions.NoWait
}

// Adopt makes a Child of a prepared one that was forked before this process
// image was executed.
func Adopt(p *Program, pid int, startTime uint64, pidfd, control *os.File) *Child {
	return &Child{Pid: pid, StartTime: startTime, Pidfd: pidfd, Control: control, program: p}
}

// Fork starts a child and waits until it has executed everything up to the
// wait for its start, or has failed. files are those of Open; Fork does not
// close them. A failed child is reaped and its error names the step:
// "mount /data: permission denied".
func Fork(p *Program, files []*os.File, stdio Stdio) (*Child, error) {
	return ForkWith(p, files, ForkOptions{Stdio: stdio})
}

// ForkWith is Fork for a forker with further wishes.
func ForkWith(p *Program, files []*os.File, opt ForkOptions) (*Child, error) {
	if len(files) != len(p.slots) {
		return nil, fmt.Errorf("launch %s: %d files for %d slots", p.id, len(files), len(p.slots))
	}
	if p.encoded != nil {
		return nil, fmt.Errorf("launch %s: the program has to be decoded first", p.id)
	}
	for _, s := range p.passed {
		opt.Extra = append(opt.Extra, files[s])
	}
	files, closeHigh, err := moveOutOfTheWay(files, 3+len(opt.Extra), len(p.passed) > 0)
	if err != nil {
		return nil, fmt.Errorf("launch %s: %w", p.id, err)
	}
	defer closeHigh()
	control, peer, err := controlPair()
	if err != nil {
		return nil, fmt.Errorf("launch %s: %w", p.id, err)
	}
	defer func() {
		if peer >= 0 {
			unix.Close(peer)
		}
	}()
	std, closeStd, err := p.lowFds(&opt, peer, files)
	if err != nil {
		control.Close()
		return nil, fmt.Errorf("launch %s: %w", p.id, err)
	}
	defer closeStd()
	// Limits set from outside need a child that stands still.
	started := opt.Start && len(p.parent) == 0
	pid, pidfd, err := p.fork(files, std, peer, &opt, started)
	if err != nil {
		control.Close()
		return nil, fmt.Errorf("launch %s: clone: %w", p.id, err)
	}
	unix.Close(peer) // else the end of the child could not be seen
	peer = -1
	c := &Child{
		Pid: pid, Pidfd: os.NewFile(uintptr(pidfd), "pidfd "+strconv.Itoa(pid)), Control: control,
		AtPoint: opt.AtPoint, AtListener: opt.AtListener, program: p, forker: opt.Forker, mapIDs: opt.WriteMaps,
	}
	c.alone = started && c.needsNoAnswer()
	if opt.NoWait && c.alone {
		return c, nil
	}
	if err := c.cloned(opt.Cloned); err != nil {
		c.discard()
		return nil, err
	}
	if err := c.prepare(); err != nil {
		c.discard()
		return nil, err
	}
	if opt.Start {
		if err := c.finish(started); err != nil {
			c.discard()
			return nil, err
		}
	}
	return c, nil
}

// needsNoAnswer tells whether a child that was started gets to its execve by itself.
func (c *Child) needsNoAnswer() bool {
	for i := range c.program.ops {
		switch c.program.ops[i].call {
		case cFork, cWaitMaps, cPoint, cConsole, cListener:
			return false
		}
	}
	return c.program.maps == nil
}

// cloned does what needs no answer of the child, while that is at work. One that
// is alone is then left so until it is done: to wake up for each of its messages
// would take the processor from it.
func (c *Child) cloned(f func(*Child)) error {
	for i := range c.program.ops {
		if c.program.ops[i].call == cFork { // it is another one that goes on
			return nil
		}
	}
	var err error
	if c.StartTime, err = sys.StartTime(c.Pid); err != nil {
		return fmt.Errorf("launch %s: %w", c.program.id, err)
	}
	if f != nil {
		f(c)
	}
	if !c.alone {
		return nil
	}
	return c.hangup()
}

// Outcome waits until a child of ForkOptions.NoWait executes its image, or has
// ended, and returns the error of the step that failed. It does not reap it.
func (c *Child) Outcome() error {
	if err := c.hangup(); err != nil {
		c.Control.Close()
		return err
	}
	return c.outcome()
}

// Ended is Outcome of a child that is known to have ended, and the last thing that
// is asked of it.
func (c *Child) Ended() error {
	defer c.forker.done(c.program)
	return c.outcome()
}

// outcome follows a child that goes nowhere any more.
func (c *Child) outcome() error {
	if err := c.prepare(); err != nil {
		c.Control.Close()
		return err
	}
	return c.finish(true)
}

// hangup waits until the child has executed its image or has ended.
func (c *Child) hangup() error {
	deadline := time.Now().Add(prepareTimeout)
	for {
		left := time.Until(deadline)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.Control.Fd())}}, int(max(left, 0).Milliseconds()))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("launch %s: poll: %w", c.program.id, err)
		case n == 0 && left <= 0:
			return c.timeout()
		case n > 0:
			return nil
		}
	}
}

// timeout kills a child that does not get on.
func (c *Child) timeout() error {
	unix.PidfdSendSignal(int(c.Pidfd.Fd()), unix.SIGKILL, nil, 0)
	return fmt.Errorf("launch %s: %w after %v", c.program.id, ErrTimeout, prepareTimeout)
}

// prepare follows the child until it waits for its start.
func (c *Child) prepare() error {
	if c.program.maps != nil && c.program.clone&unix.CLONE_NEWUSER != 0 {
		if err := c.writeMaps(); err != nil {
			return err
		}
	}
	for {
		msg, files, err := c.receive()
		if err == io.EOF {
			err = c.killed()
		}
		if err != nil {
			return err
		}
		switch msg.Kind {
		case msgForked:
			err = c.follow(msg, files)
		case msgConsole:
			if len(files) == 1 && c.Console == nil {
				c.Console, files = files[0], nil
			}
		case msgPoint:
			err = c.atPoint(msg)
		case msgListener:
			err = c.atListener(msg)
		case msgWarning:
			c.Warnings = append(c.Warnings, c.step(msg))
		case msgPrepared, msgExecuting:
			c.executing = msg.Kind == msgExecuting
			err = c.prepared()
			sys.CloseAll(files)
			return err
		case msgFailed:
			err = c.failure(msg)
		}
		sys.CloseAll(files)
		if err != nil {
			return err
		}
	}
}

// follow turns from a child that forked a sibling and exited to that sibling.
func (c *Child) follow(msg message, files []*os.File) error {
	if len(files) != 1 {
		return fmt.Errorf("launch %s: no pidfd of the second child", c.program.id)
	}
	pid, err := pidOf(files[0])
	if err != nil {
		return fmt.Errorf("launch %s: %w", c.program.id, err)
	}
	fd, err := unix.FcntlInt(files[0].Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("launch %s: duplicate pidfd: %w", c.program.id, err)
	}
	reap(c.Pid)
	c.Pidfd.Close()
	c.Pid = pid
	c.Pidfd = os.NewFile(uintptr(fd), "pidfd "+strconv.Itoa(pid))
	if c.program.maps == nil || msg.Op >= uint32(len(c.program.ops)) ||
		c.program.ops[msg.Op].args[0].value&unix.CLONE_NEWUSER == 0 {
		return c.release()
	}
	return c.writeMaps()
}

// pidOf returns the number of a process as the forker sees it. (Its sibling
// may be in another pid namespace, and know another number.)
func pidOf(pidfd *os.File) (int, error) {
	info, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(int(pidfd.Fd())))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(info)) {
		if v, ok := strings.CutPrefix(line, "Pid:"); ok {
			pid, err := strconv.Atoi(strings.TrimSpace(v))
			if err == nil && pid > 0 {
				return pid, nil
			}
		}
	}
	return 0, errors.New("the pidfd's process is gone")
}

// writeMaps writes the id maps of the child's new user namespace, does what
// else needs privilege outside of it, and lets the child go on.
func (c *Child) writeMaps() error {
	dir := "/proc/" + strconv.Itoa(c.Pid) + "/"
	if c.mapIDs != nil {
		if err := c.mapIDs(c.Pid, c.program.maps.UID, c.program.maps.GID); err != nil {
			return err
		}
	} else {
		for _, f := range []struct{ name, content string }{
			{"uid_map", c.program.maps.UID},
			{"gid_map", c.program.maps.GID},
		} {
			if err := os.WriteFile(dir+f.name, []byte(f.content), 0); err != nil {
				return fmt.Errorf("write %s: %w", f.name, errnoOf(err))
			}
		}
	}
	for _, s := range c.program.parent {
		if s.file == "" {
			continue
		}
		if err := os.WriteFile(dir+s.file, []byte(s.content), 0); err != nil {
			c.Warnings = append(c.Warnings, fmt.Sprintf("%s: %v", s.label, errnoOf(err)))
		}
	}
	return c.release()
}

// prepared completes a child that waits for its start.
func (c *Child) prepared() error {
	for _, s := range c.program.parent {
		if s.file != "" {
			continue
		}
		l := unix.Rlimit{Cur: s.soft, Max: s.hard}
		if err := unix.Prlimit(c.Pid, s.resource, &l, nil); err != nil {
			return fmt.Errorf("%s: %w", s.label, err)
		}
	}
	if c.StartTime != 0 || c.alone {
		return nil // it is known, or does not matter for one that may have ended
	}
	var err error
	if c.StartTime, err = sys.StartTime(c.Pid); err != nil {
		return fmt.Errorf("launch %s: %w", c.program.id, err)
	}
	return nil
}

// Alone tells whether the child was left on its way, for ForkOptions.NoWait.
func (c *Child) Alone() bool { return c.alone }

// Start lets the child execute the rest, execve last, and returns when the new
// image runs or with the error of the failed step; after an error the child
// exits with status 128 and is the caller's to reap.
func (c *Child) Start() error { return c.finish(false) }

// finish follows the child to its execve, and lets it go there first unless it
// was started from the beginning.
func (c *Child) finish(started bool) error {
	defer c.Control.Close()
	if !started {
		if err := c.release(); err != nil {
			return err
		}
	}
	for {
		msg, files, err := c.receive()
		sys.CloseAll(files)
		if err == io.EOF && c.executing {
			return c.checkListened()
		}
		if err == io.EOF {
			err = c.killed()
		}
		if err != nil {
			return err
		}
		switch msg.Kind {
		case msgPoint:
			if err := c.atPoint(msg); err != nil {
				return err
			}
		case msgListener:
			if err := c.atListener(msg); err != nil {
				return err
			}
		case msgExecuting:
			c.executing = true
		case msgFailed:
			return c.failure(msg)
		}
	}
}

// Abandon ends a child that is not going to be started. Like any child it is
// the caller's to reap.
func (c *Child) Abandon() error {
	err := unix.PidfdSendSignal(int(c.Pidfd.Fd()), unix.SIGKILL, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		err = nil
	}
	return errors.Join(os.NewSyscallError("pidfd_send_signal", err), c.Control.Close())
}

// discard kills and reaps a child that was not prepared.
func (c *Child) discard() {
	unix.PidfdSendSignal(int(c.Pidfd.Fd()), unix.SIGKILL, nil, 0)
	c.Control.Close()
	reap(c.Pid)
	c.Pidfd.Close()
	if c.Console != nil {
		c.Console.Close()
	}
}

// reap waits for the end of a child, unless somebody else has reaped it.
func reap(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, unix.WALL, nil); err != unix.EINTR {
			return
		}
	}
}

// release sends the byte that the child waits for.
func (c *Child) release() error {
	err := sys.SendMsg(int(c.Control.Fd()), []byte{1}, nil)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return nil // the child is gone: what it has left to say is yet to be received
	}
	return err
}

// killed is the error of a child that ended without a word.
func (c *Child) killed() error {
	if c.program.pidns >= 0 { // as a rule with the container that it was to join
		return fmt.Errorf("launch %s: the child was killed: %w (%w)", c.program.id, io.EOF, os.ErrProcessDone)
	}
	return fmt.Errorf("launch %s: the child was killed: %w", c.program.id, io.EOF)
}

// receive waits for the child's next message; io.EOF says that none comes.
func (c *Child) receive() (m message, files []*os.File, err error) {
	var buf [messageSize]byte
	n, files, err := sys.RecvMsg(int(c.Control.Fd()), buf[:])
	switch {
	case errors.Is(err, unix.EAGAIN):
		return m, nil, c.timeout()
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return m, nil, io.EOF
	case err != nil:
		return m, nil, fmt.Errorf("launch %s: %w", c.program.id, err)
	case n != len(buf):
		sys.CloseAll(files)
		return m, nil, fmt.Errorf("launch %s: message of %d bytes", c.program.id, n)
	}
	m.Kind = binary.NativeEndian.Uint32(buf[0:])
	m.Op = binary.NativeEndian.Uint32(buf[4:])
	m.Value = binary.NativeEndian.Uint32(buf[8:])
	return m, files, nil
}

// failure is the error of a failed step.
func (c *Child) failure(m message) error {
	e := &StepError{Step: c.step(m), Errno: syscall.Errno(m.Value)}
	if m.Op < uint32(len(c.program.ops)) {
		e.whole = c.program.ops[m.Op].whole
	}
	return e
}

func (c *Child) step(m message) string {
	if m.Op >= uint32(len(c.program.ops)) {
		return "set up descriptors" // of the prologue
	}
	return c.program.ops[m.Op].text
}

// controlPair makes the socket between forker and child. The child's end is
// out of the way of its stdio.
func controlPair() (control *os.File, peer int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, os.NewSyscallError("socketpair", err)
	}
	control, peer = os.NewFile(uintptr(fds[0]), "control"), fds[1]
	tv := unix.NsecToTimeval(int64(prepareTimeout))
	err = unix.SetsockoptTimeval(fds[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	if err == nil && peer < 3 {
		peer, err = unix.FcntlInt(uintptr(fds[1]), unix.F_DUPFD_CLOEXEC, 3)
		unix.Close(fds[1])
	}
	if err != nil {
		control.Close()
		return nil, -1, fmt.Errorf("control socket: %w", err)
	}
	return control, peer, nil
}

// errnoOf strips the path that an os error repeats.
func errnoOf(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
