package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"podstead/supervisor/internal/protocol"
	"podstead/sys"
)

// ErrDisconnected ends all calls that were under way when the connection to
// the supervisor broke. What they asked for may have been done.
var ErrDisconnected = errors.New("connection to the supervisor broke")

// errUnsent is ErrDisconnected of a request that was certainly not made.
var errUnsent = fmt.Errorf("request was not sent: %w", ErrDisconnected)

// wire is one connection, with many calls under way.
type wire struct {
	sock *socket
	done chan struct{} // closed when the connection has ended
	pid  int           // of the supervisor

	mu    sync.Mutex
	seq   uint32
	calls map[uint32]*call
	ended bool
}

// call is a request under way. Its answers are kept in order until somebody
// takes them, so that a slow taker holds up nobody else.
type call struct {
	w    *wire
	seq  uint32
	wake chan struct{} // capacity 1

	mu      sync.Mutex
	answers []*protocol.Packet
	over    bool
}

// dial connects to the supervisor of a run directory.
func dial(ctx context.Context, runDir string) (*wire, error) {
	path := filepath.Join(runDir, protocol.SocketName)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("connect to supervisor: %w", err)
	}
	if err := connect(fd, runDir); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("connect to supervisor %s: %w", path, err)
	}
	sock, err := newSocket(fd, path)
	if err != nil {
		return nil, fmt.Errorf("connect to supervisor %s: %w", path, err)
	}
	w := &wire{sock: sock, done: make(chan struct{}), calls: map[uint32]*call{}}
	go w.receive()
	var g protocol.Greeting
	if _, err := w.ask(ctx, protocol.Hello, &protocol.Number{N: protocol.Version}, nil, &g); err != nil {
		w.close()
		return nil, fmt.Errorf("connect to supervisor %s: %w", path, err)
	}
	if g.Version != protocol.Version {
		w.close()
		return nil, fmt.Errorf("supervisor %s speaks protocol %d, not %d: upgrade it", path, g.Version, protocol.Version)
	}
	w.pid = g.Pid
	return w, nil
}

// connect goes by way of /proc, because a socket's path has at most 107 bytes.
func connect(fd int, runDir string) error {
	dir, err := unix.Open(runDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(dir) + "/" + protocol.SocketName})
}

// receive hands answers to their calls until the connection ends.
func (w *wire) receive() {
	buf := make([]byte, protocol.BufferSize)
	for reset := false; ; {
		p, err := w.sock.receive(buf)
		if err == unix.EAGAIN {
			if w.sock.wait() != nil {
				break
			}
			continue
		}
		if err == unix.ECONNRESET && !reset {
			// It was killed before it read a request of ours. What it sent before is
			// there all the same: exits that nobody tells a second time.
			reset = true
			continue
		}
		if err != nil {
			break
		}
		p.Body = append([]byte(nil), p.Body...)
		w.deliver(p)
		// Who waits for it goes on here, before another thread is awake for it.
		runtime.Gosched()
	}
	w.mu.Lock()
	w.ended = true
	calls := w.calls
	w.calls = nil
	w.mu.Unlock()
	w.sock.close()
	close(w.done)
	for _, c := range calls {
		c.notify()
	}
}

func (w *wire) deliver(p *protocol.Packet) {
	w.mu.Lock()
	c := w.calls[p.Seq]
	if p.Op != protocol.Event {
		delete(w.calls, p.Seq)
	}
	w.mu.Unlock()
	if c == nil {
		protocol.CloseFds(p.Fds) // the caller has given up
		return
	}
	c.mu.Lock()
	over := c.over
	if !over {
		c.answers = append(c.answers, p)
	}
	c.mu.Unlock()
	if over {
		protocol.CloseFds(p.Fds)
	}
	c.notify()
}

// begin sends a request. The call must be ended.
func (w *wire) begin(op protocol.Op, body protocol.Coded, files []*os.File) (*call, error) {
	p := &protocol.Packet{Op: op}
	if body != nil {
		p.Body = protocol.Encode(body)
	}
	for _, f := range files {
		fd, err := sys.Descriptor(f)
		if err != nil {
			return nil, err
		}
		p.Fds = append(p.Fds, fd)
	}
	c := &call{w: w, wake: make(chan struct{}, 1)}
	w.mu.Lock()
	if w.ended {
		w.mu.Unlock()
		return nil, errUnsent
	}
	w.seq++
	c.seq, p.Seq = w.seq, w.seq
	w.calls[c.seq] = c
	w.mu.Unlock()
	err := w.sock.send(p)
	if err != nil {
		c.end()
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, os.ErrClosed) {
			err = errUnsent
		}
		return nil, err
	}
	return c, nil
}

// next waits for the next answer.
func (c *call) next(ctx context.Context) (*protocol.Packet, error) {
	for {
		c.mu.Lock()
		if len(c.answers) > 0 {
			p := c.answers[0]
			c.answers = c.answers[1:]
			c.mu.Unlock()
			return p, nil
		}
		c.mu.Unlock()
		select {
		case <-c.wake:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-c.w.done:
			c.mu.Lock()
			n := len(c.answers)
			c.mu.Unlock()
			if n == 0 {
				return nil, ErrDisconnected
			}
		}
	}
}

// taken takes the answers that are there.
func (c *call) taken() []*protocol.Packet {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.answers
	c.answers = nil
	return all
}

func (c *call) notify() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// end gives up what answers may still come.
func (c *call) end() {
	c.w.mu.Lock()
	delete(c.w.calls, c.seq)
	c.w.mu.Unlock()
	c.mu.Lock()
	c.over = true
	left := c.answers
	c.answers = nil
	c.mu.Unlock()
	for _, p := range left {
		protocol.CloseFds(p.Fds)
	}
}

// ask makes a request with one answer, whose body goes to answer (if not nil)
// and whose descriptors are returned.
func (w *wire) ask(ctx context.Context, op protocol.Op, body protocol.Coded, files []*os.File, answer protocol.Coded) ([]*os.File, error) {
	c, err := w.begin(op, body, files)
	if err != nil {
		return nil, err
	}
	defer c.end()
	p, err := c.next(ctx)
	if err != nil {
		return nil, err
	}
	return open(p, answer)
}

// open unpacks an answer.
func open(p *protocol.Packet, answer protocol.Coded) ([]*os.File, error) {
	if p.Op == protocol.Fail {
		protocol.CloseFds(p.Fds)
		f := &protocol.Failure{}
		if err := protocol.Decode(p.Body, f); err != nil {
			return nil, fmt.Errorf("answer of the supervisor: %w", err)
		}
		return nil, f
	}
	if answer != nil {
		if err := protocol.Decode(p.Body, answer); err != nil {
			protocol.CloseFds(p.Fds)
			return nil, fmt.Errorf("answer of the supervisor: %w", err)
		}
	}
	files := make([]*os.File, len(p.Fds))
	for i, fd := range p.Fds {
		files[i] = os.NewFile(uintptr(fd), "from supervisor")
	}
	return files, nil
}

// broken tells whether the connection has ended.
func (w *wire) broken() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

func (w *wire) close() {
	w.sock.close()
	<-w.done
}
