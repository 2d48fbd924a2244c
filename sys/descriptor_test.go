package sys

import (
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFilesStayPollable passes a listener on and copies it: it must not become
// one that blocks, since accept could then not be ended.
func TestFilesStayPollable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	if err := SendMsg(pair[0], []byte("x"), []*os.File{file}); err != nil {
		t.Fatal(err)
	}
	dup, err := Dup(file)
	if err != nil {
		t.Fatal(err)
	}
	defer dup.Close()
	fd, err := Descriptor(file)
	if err != nil {
		t.Fatal(err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("the listener blocks now: flags %#x, %v", flags, err)
	}
}
