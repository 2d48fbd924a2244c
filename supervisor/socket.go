package supervisor

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"podstead/supervisor/internal/protocol"
)

// socket is a client's end of a connection. Go's poller does not watch it itself:
// it would do so for writing, too, and the supervisor would wake up the client
// whenever it took a message, in the middle of what it was asked for.
type socket struct {
	file  *os.File // to Go, a file that blocks
	input *os.File // an epoll instance that watches it for input
}

// newSocket takes over a connected socket.
func newSocket(fd int, name string) (*socket, error) {
	s := &socket{}
	err := unix.SetNonblock(fd, false) // the calls say that they do not wait
	s.file = os.NewFile(uintptr(fd), name)
	if err == nil {
		s.input, err = watchInput(fd)
	}
	if err != nil {
		s.file.Close()
		return nil, err
	}
	return s, nil
}

func watchInput(fd int) (*os.File, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create: %w", err)
	}
	err = unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN})
	if err == nil {
		err = unix.SetNonblock(epfd, true) // makes os.File poll it
	}
	if err != nil {
		unix.Close(epfd)
		return nil, fmt.Errorf("watch socket: %w", err)
	}
	return os.NewFile(uintptr(epfd), "epoll"), nil
}

// wait waits for input, or the end. It returns os.ErrClosed after close.
func (s *socket) wait() error {
	raw, err := s.input.SyscallConn()
	if err != nil {
		return err
	}
	var werr error
	err = raw.Read(func(fd uintptr) bool {
		var events [1]unix.EpollEvent
		n, err := unix.EpollWait(int(fd), events[:], 0)
		if err != nil && err != unix.EINTR {
			werr = err
		}
		return n > 0 || werr != nil
	})
	if err != nil { // there is only one, and os does not say it in its own words
		return os.ErrClosed
	}
	return werr
}

// receive returns the next message, unix.EAGAIN if there is none. See
// protocol.RecvPacket.
func (s *socket) receive(buf []byte) (p *protocol.Packet, err error) {
	cerr := s.with(func(fd int) { p, err = protocol.RecvPacket(fd, buf) })
	if cerr != nil {
		return nil, cerr
	}
	return p, err
}

// sendTick is how soon a sender notices that the connection was closed.
const sendTick = 100 // milliseconds

// send sends a message, and waits as long as it takes.
func (s *socket) send(p *protocol.Packet) error {
	for {
		var err error
		cerr := s.with(func(fd int) {
			if err = protocol.SendPacket(fd, p); err == unix.EAGAIN {
				unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, sendTick)
			}
		})
		if cerr != nil {
			return cerr
		}
		if err != unix.EAGAIN {
			return err
		}
	}
}

// with keeps the descriptor open for f, or returns os.ErrClosed.
func (s *socket) with(f func(fd int)) error {
	raw, err := s.file.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { f(int(fd)) })
	}
	if err != nil {
		return os.ErrClosed
	}
	return nil
}

// close ends a wait. The descriptor is closed when nobody uses it.
func (s *socket) close() {
	s.input.Close()
	s.file.Close()
}
