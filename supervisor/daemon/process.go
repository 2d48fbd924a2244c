package daemon

import (
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"podstead/oci/launch"
	"podstead/supervisor/internal/protocol"
)

// The classes of errors that clients distinguish.
var (
	errGone     = os.ErrProcessDone
	errNotExist = fs.ErrNotExist
	errExist    = fs.ErrExist
	errInvalid  = fs.ErrInvalid
)

// States of a process, in order.
const (
	launching protocol.State = "launching" // for clients: here it is ""
	created   protocol.State = "created"
	running   protocol.State = "running"
	exited    protocol.State = "exited"
)

// process is a launched process. It belongs to the loop.
//
//	"" ──launched──▶ created ──Start──▶ running ──exit, drained──▶ exited
//	                    └──────────exit, drained──────────────────────┘
type process struct {
	protocol.Process // State is "" while the launch is under way
	Log              protocol.LogFile
	StdinOnce        bool
	once             bool // drop it when its exit was told

	pidfd *os.File // nil after the exit
	token token
	// child, with what it waits on and its program, until it was started.
	child    Child
	control  *os.File
	program  []byte
	pipes    [3]uint64 // inodes of its stdio pipes, to find them again
	stdin    int       // write end of its input, -1 if none or closed; a pty: the master
	io       *stdio    // nil if its stdio was passed through
	reaps    bool      // it is our child, not one of a supervisor before us
	recorded bool      // it has a record
	attached map[*attachment]bool

	exitSeen  bool // it is dead; State follows when its output is drained
	starting  bool
	startErr  error
	discarded bool // forget it once it is dead: its launch failed
	cancelled bool // SIGKILL came while its launch was under way
	// alone is it as long as it is on its way to its image and nobody follows it,
	// see leaveAlone; young is when that ends.
	alone *launch.Child
	young *time.Timer
	// launching are answered when the launch ends, startWaiters called when the
	// start does.
	launching    []asked
	startWaiters []func(error)
}

// asked is a request whose answer comes later.
type asked struct {
	conn *conn
	seq  uint32
}

// process finds one by its ID.
func (d *daemon) process(id string) (*process, error) {
	p := d.procs[id]
	if p == nil || p.State == "" {
		return nil, fmt.Errorf("process %s: %w", id, errNotExist)
	}
	return p, nil
}

// signal sends a signal to a live process. SIGKILL also ends a launch that is
// under way, as soon as it can be ended.
func (p *process) signal(n int) error {
	if p.State == "" {
		if n != int(unix.SIGKILL) {
			return fmt.Errorf("process %s: %w", p.ID, errNotExist)
		}
		p.cancelled = true
		if p.alone != nil {
			p.killAlone()
		}
		return nil
	}
	if p.exitSeen || p.pidfd == nil {
		return fmt.Errorf("signal %s: %w", p.ID, errGone)
	}
	if n < 0 || n > 64 {
		return fmt.Errorf("signal %s: signal %d: %w", p.ID, n, errInvalid)
	}
	err := unix.PidfdSendSignal(int(p.pidfd.Fd()), unix.Signal(n), nil, 0)
	if err == unix.ESRCH {
		return fmt.Errorf("signal %s: %w", p.ID, errGone)
	}
	if err != nil {
		return fmt.Errorf("signal %s: %w", p.ID, err)
	}
	return nil
}

// resize sets the window of its pty.
func (p *process) resize(width, height uint64) error {
	if p.exitSeen {
		return fmt.Errorf("resize %s: %w", p.ID, errGone)
	}
	if !p.Console || p.stdin < 0 {
		return fmt.Errorf("resize %s: it has no pty here: %w", p.ID, errInvalid)
	}
	if width > 0xffff || height > 0xffff {
		return fmt.Errorf("resize %s: %d×%d: %w", p.ID, width, height, errInvalid)
	}
	size := unix.Winsize{Col: uint16(width), Row: uint16(height)}
	if err := unix.IoctlSetWinsize(p.stdin, unix.TIOCSWINSZ, &size); err != nil {
		return fmt.Errorf("resize %s: %w", p.ID, err)
	}
	return nil
}

func (p *process) closeStdin() {
	if p.stdin >= 0 {
		unix.Close(p.stdin)
		p.stdin = -1
	}
}

// forget drops the record of an exited process.
func (d *daemon) forget(id string) error {
	p := d.procs[id]
	if p == nil {
		return nil
	}
	if p.State != exited {
		return fmt.Errorf("forget %s: it is %s: %w", id, p.State, errInvalid)
	}
	d.erase(p)
	return nil
}

// erase leaves nothing of an exited process.
func (d *daemon) erase(p *process) {
	if p.io != nil {
		p.io.abandon()
	}
	delete(d.procs, p.ID)
	d.removeRecord(p)
}

// handle packs a process and the descriptors that keep it whole.
func (p *process) handle() (*protocol.Handle, []int) {
	h := &protocol.Handle{Process: p.Process}
	var fds []int
	if p.pidfd != nil && !p.once {
		h.Kind.Pidfd = true
		fds = append(fds, int(p.pidfd.Fd()))
	}
	if p.stdin >= 0 && p.Console {
		h.Kind.Console = true
		fds = append(fds, p.stdin)
	}
	return h, fds
}

// start handles a Start request; done is called when the image runs. hooks has
// the descriptor of who runs the hooks of the start, or none.
func (d *daemon) start(p *process, hooks []int, done func(error)) {
	defer func() { protocol.CloseFds(hooks) }()
	switch {
	case p.exitSeen && !p.starting:
		done(fmt.Errorf("start %s: %w", p.ID, errGone))
		return
	case p.State == running:
		done(nil)
		return
	}
	p.startWaiters = append(p.startWaiters, done)
	if p.starting {
		return
	}
	if p.child == nil { // launched by a supervisor that died: it dies too
		p.startWaiters = nil
		done(fmt.Errorf("start %s: %w", p.ID, errGone))
		return
	}
	p.starting = true
	d.forks++
	var who *os.File
	if len(hooks) > 0 {
		who = os.NewFile(uintptr(hooks[0]), "hooks")
		hooks = hooks[1:]
	}
	go func() {
		err := p.child.Start(hooksBy(who, launch.PointStart))
		if who != nil {
			who.Close()
		}
		now := time.Now()
		d.post(func() {
			d.forks--
			d.started(p, now, err)
		})
	}()
}

func (d *daemon) started(p *process, now time.Time, err error) {
	p.starting, p.child, p.control, p.program = false, nil, nil, nil
	if err == nil {
		p.State, p.StartedAt = running, now
		if p.exitSeen && p.ExitedAt.Before(now) { // faster than our clock
			p.StartedAt = p.ExitedAt
		}
		d.writeRecord(p)
	}
	p.startErr = err
	waiters := p.startWaiters
	p.startWaiters = nil
	for _, done := range waiters {
		done(err)
	}
	if p.exitSeen {
		d.drainExited(p)
	}
}
