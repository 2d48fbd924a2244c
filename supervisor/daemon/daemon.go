// Package daemon is the supervisor itself: the loop that launches processes,
// reaps them, moves their output and answers clients. It is run by
// cmd/podstead-supervisor; its clients use package supervisor.
//
// One goroutine, the loop, owns all state but the outputs; what may block, a
// fork or a write to a log, happens beside it: forks in a goroutine each,
// output on strands that share a pool of workers. Both report to the loop by
// post. An idle container costs no goroutine.
//
// What survives: an upgrade by execve, everything (upgrade.go). SIGKILL: the
// containers, and what they had not written yet; the next supervisor takes
// them back from its records, from /proc and from clients that hold copies of
// descriptors (recover.go). Nothing survives a reboot, nor do containers.
package daemon

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"podstead/oci/launch"
	"podstead/supervisor/internal/protocol"
)

// maxLog bounds the supervisor's own log.
const maxLog = 1 << 20

// boundedLog writes to a file and starts it anew when it is large: a run
// directory is in memory.
type boundedLog struct{ *os.File }

// LogTo is where a supervisor's log goes.
func LogTo(f *os.File) io.Writer { return boundedLog{f} }

func (b boundedLog) Write(p []byte) (int, error) {
	if st, err := b.Stat(); err == nil && st.Mode().IsRegular() && st.Size() > maxLog {
		b.Truncate(0)
	}
	return b.File.Write(p)
}

// Config of a supervisor.
type Config struct {
	RunDir string
	Fork   Forker
	Log    *slog.Logger
	// Exe is the program's file, for an upgrade to what it is then; by default
	// what the process was executed from.
	Exe string
	// State is the descriptor of the state that an upgrade hands over, else -1.
	State int
}

type daemon struct {
	cfg    Config
	log    *slog.Logger
	poll   *poller
	pool   *pool
	posts  chan func()
	lock   *os.File
	forker *launch.Forker

	listener    int
	listenToken token
	recvBuf     [protocol.BufferSize]byte
	conns       map[*conn]bool
	procs       map[string]*process
	stored      map[string][]int
	engine      engine

	forks    int // launches and starts under way
	adopts   bool
	onChild  sigaction // what Go's runtime does at SIGCHLD, until the supervisor adopts
	exe      string
	upgrade  *upgrade
	quiet    bool // an upgrade is near: no new work
	stopping bool // end when the last container has
	idle     *time.Timer
	done     bool
}

// How long the supervisor waits for somebody who needs it.
const (
	firstGrace = 5 * time.Second
	idleGrace  = time.Second
)

// ErrRunning says that another supervisor serves the run directory.
var ErrRunning = fmt.Errorf("another supervisor runs: %w", errExist)

// Run is the life of a supervisor: it returns when nobody needs it any more.
func Run(cfg Config) error {
	d := &daemon{
		cfg:      cfg,
		log:      cfg.Log,
		posts:    make(chan func(), 256),
		pool:     newPool(newProcessors()),
		listener: -1,
		conns:    map[*conn]bool{},
		procs:    map[string]*process{},
		stored:   map[string][]int{},
		engine:   engine{out: [2]int{-1, -1}, pidfd: -1},
	}
	if err := d.setup(); err != nil {
		return err
	}
	err := d.loop()
	d.end()
	return err
}

func (d *daemon) setup() error {
	var err error
	if d.forker, err = launch.NewForker(); err != nil {
		return err
	}
	if d.poll, err = newPoller(); err != nil {
		return err
	}
	// Now, because later the file may have been replaced.
	if d.exe = d.cfg.Exe; d.exe == "" {
		if d.exe, err = os.Executable(); err != nil {
			return err
		}
	}
	if d.cfg.State >= 0 {
		return d.restore(d.cfg.State)
	}
	if err := d.takeLock(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(d.cfg.RunDir, protocol.StateDir), 0o700); err != nil {
		return err
	}
	d.recoverAll()
	return d.listen()
}

// takeLock makes sure that this is the only supervisor of the run directory.
func (d *daemon) takeLock() error {
	path := filepath.Join(d.cfg.RunDir, protocol.LockName)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if err == unix.EWOULDBLOCK {
			return ErrRunning
		}
		return fmt.Errorf("lock %s: %w", path, err)
	}
	d.lock = f
	return nil
}

// listen makes the socket, under a name of its own first, so that it appears
// with its mode and listening.
func (d *daemon) listen() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("make socket: %w", err)
	}
	dir, err := os.Open(d.cfg.RunDir)
	if err != nil {
		unix.Close(fd)
		return err
	}
	defer dir.Close()
	// By way of /proc, because a socket's path has at most 107 bytes.
	at := "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/"
	tmp := at + "." + protocol.SocketName
	os.Remove(tmp)
	path := filepath.Join(d.cfg.RunDir, protocol.SocketName)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: tmp})
	if err == nil {
		err = unix.Chmod(tmp, 0o600)
	}
	if err == nil {
		err = unix.Listen(fd, 128)
	}
	if err == nil {
		err = unix.Rename(tmp, path)
	}
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	return d.serve(fd)
}

// serve takes clients from a listening socket.
func (d *daemon) serve(fd int) error {
	d.listener = fd
	var err error
	d.listenToken, err = d.poll.add(fd, unix.EPOLLIN, func(uint32) {
		if !d.quiet {
			d.accept()
		}
	})
	return err
}

// post runs f in the loop. It must not be called from the loop itself.
func (d *daemon) post(f func()) { d.posts <- f }

func (d *daemon) loop() error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGHUP, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(signals)
	// Caught and not ignored: that would be inherited by commands.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	if err := d.beParent(); err != nil {
		return err
	}
	go d.poll.run()
	d.idleAfter(firstGrace)
	for !d.done {
		select {
		case events := <-d.poll.ready:
			d.poll.dispatch(events)
		case f := <-d.posts:
			f()
		case s := <-signals:
			d.signalled(s)
		}
		d.checkIdle()
	}
	d.poll.close()
	return nil
}

func (d *daemon) signalled(s os.Signal) {
	switch s {
	case unix.SIGCHLD:
		d.sweep()
	case unix.SIGHUP:
		d.beginUpgrade(&upgrade{done: func(err error) { d.log.Error("upgrade", "err", err) }})
	default:
		// Containers are not ended by accident: they are what this process is for.
		d.log.Warn("told to end: will, when the last container has", "signal", s.String(), "containers", len(d.procs))
		d.stopping = true
		d.stopEngine(30*time.Second, func() {})
	}
}

// needed tells whether somebody would miss the supervisor.
func (d *daemon) needed() bool {
	if d.forks > 0 || d.engine.req != nil || d.engine.pid != 0 {
		return true
	}
	if d.stopping {
		for _, p := range d.procs {
			if p.State != exited {
				return true
			}
		}
		return false
	}
	return len(d.conns) > 0 || len(d.procs) > 0 || !d.onlyListeners()
}

// checkIdle arranges the end when nobody needs the supervisor.
func (d *daemon) checkIdle() {
	if d.idle == nil && !d.needed() {
		d.idleAfter(idleGrace)
	}
}

func (d *daemon) idleAfter(grace time.Duration) {
	d.idle = time.AfterFunc(grace, func() {
		d.post(func() {
			d.idle = nil
			d.accept() // who connected meanwhile
			d.done = !d.needed()
		})
	})
}

// end leaves nothing behind.
func (d *daemon) end() {
	d.dropAll()
	os.Remove(filepath.Join(d.cfg.RunDir, protocol.SocketName))
	unix.Close(d.listener)
	for c := range d.conns {
		c.close(nil)
	}
	os.RemoveAll(filepath.Join(d.cfg.RunDir, protocol.StateDir))
	d.lock.Close()
}
