package supervisor

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"podstead/supervisor/internal/protocol"
)

// TestSocket: whoever sends to a supervisor that does not read waits, and loses
// nothing; and neither it nor who waits for an answer does so after the end.
func TestSocket(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	s, err := newSocket(fds[0], "socket")
	if err != nil {
		t.Fatal(err)
	}
	const messages = 1000
	sent := make(chan error, 1)
	go func() {
		for n := range uint32(messages) {
			if err := s.send(&protocol.Packet{Seq: n, Body: make([]byte, 1000)}); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	buf := make([]byte, protocol.BufferSize)
	if _, err := s.receive(buf); err != unix.EAGAIN {
		t.Errorf("nothing was sent: %v", err)
	}
	for n := uint32(0); n < messages; {
		p, err := protocol.RecvPacket(fds[1], buf)
		switch {
		case err == unix.EAGAIN:
			unix.Poll([]unix.PollFd{{Fd: int32(fds[1]), Events: unix.POLLIN}}, -1)
		case err != nil || p.Seq != n || len(p.Body) != 1000:
			t.Fatalf("message %d: %+v, %v", n, p, err)
		default:
			n++
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if err := protocol.SendPacket(fds[1], &protocol.Packet{Seq: 7}); err != nil {
		t.Fatal(err)
	}
	if err := s.wait(); err != nil {
		t.Error(err)
	}
	if p, err := s.receive(buf); err != nil || p.Seq != 7 {
		t.Errorf("%+v, %v", p, err)
	}

	// The end, for those who wait for room and for an answer.
	waited := make(chan error, 1)
	go func() { waited <- s.wait() }()
	go func() {
		var err error
		for err == nil {
			err = s.send(&protocol.Packet{Body: make([]byte, 1000)})
		}
		sent <- err
	}()
	unix.Poll([]unix.PollFd{{Fd: int32(fds[1]), Events: unix.POLLIN}}, -1) // it has begun
	s.close()
	for _, c := range []chan error{sent, waited} {
		if err := <-c; !errors.Is(err, os.ErrClosed) {
			t.Errorf("after the end: %v", err)
		}
	}
}
