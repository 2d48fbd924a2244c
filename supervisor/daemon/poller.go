package daemon

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// token names a registration with the poller. Tokens are never used again, so
// that an event which was fetched before its descriptor was closed cannot be
// taken for one of a later descriptor with the same number.
type token uint64

// poller tells which descriptors are ready. One epoll instance watches them
// all, and the Go runtime watches that one: an idle descriptor costs neither a
// goroutine nor a thread.
type poller struct {
	epfd int
	file *os.File
	raw  syscall.RawConn
	// ready hands a batch of events to the loop, handled asks for the next one.
	ready   chan []unix.EpollEvent
	handled chan struct{}

	// What follows belongs to the loop.
	handlers map[token]func(events uint32)
	last     token
}

func newPoller() (*poller, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create: %w", err)
	}
	if err := unix.SetNonblock(epfd, true); err != nil { // makes os.File poll it
		return nil, fmt.Errorf("epoll: %w", err)
	}
	p := &poller{
		epfd:     epfd,
		file:     os.NewFile(uintptr(epfd), "epoll"),
		ready:    make(chan []unix.EpollEvent),
		handled:  make(chan struct{}),
		handlers: map[token]func(uint32){},
	}
	if p.raw, err = p.file.SyscallConn(); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return p, nil
}

// run fetches events until close.
func (p *poller) run() {
	defer close(p.ready)
	var events [64]unix.EpollEvent
	for {
		n := 0
		err := p.raw.Read(func(fd uintptr) bool {
			var err error
			n, err = unix.EpollWait(int(fd), events[:], 0)
			return n > 0 || err != nil && err != unix.EINTR
		})
		if err != nil || n < 0 {
			return
		}
		p.ready <- events[:n]
		<-p.handled
	}
}

// dispatch handles a batch.
func (p *poller) dispatch(events []unix.EpollEvent) {
	for _, e := range events {
		t := token(uint32(e.Fd)) | token(uint32(e.Pad))<<32
		if h := p.handlers[t]; h != nil {
			h(e.Events)
		}
	}
	p.handled <- struct{}{}
}

// add watches fd; h is called in the loop.
func (p *poller) add(fd int, events uint32, h func(events uint32)) (token, error) {
	p.last++
	t := p.last
	if err := unix.EpollCtl(p.epfd, unix.EPOLL_CTL_ADD, fd, t.event(events)); err != nil {
		return 0, fmt.Errorf("epoll_ctl add: %w", err)
	}
	p.handlers[t] = h
	return t, nil
}

// arm sets what is watched of fd, again after an EPOLLONESHOT event. Any
// goroutine that owns fd may call it.
func (p *poller) arm(fd int, t token, events uint32) {
	unix.EpollCtl(p.epfd, unix.EPOLL_CTL_MOD, fd, t.event(events))
}

// remove ends the watch; the caller then closes fd.
func (p *poller) remove(fd int, t token) {
	if t == 0 {
		return
	}
	unix.EpollCtl(p.epfd, unix.EPOLL_CTL_DEL, fd, nil)
	delete(p.handlers, t)
}

func (p *poller) close() { p.file.Close() }

func (t token) event(events uint32) *unix.EpollEvent {
	return &unix.EpollEvent{Events: events, Fd: int32(uint32(t)), Pad: int32(uint32(t >> 32))}
}
