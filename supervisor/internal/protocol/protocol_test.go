package protocol

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// messages has one of each, with every field set.
func messages() []Coded {
	p := Process{
		ID: "a/b", State: "running", Pid: 42, StartTicks: 1 << 40, StartedAt: time.Unix(1, 2), ExitedAt: time.Unix(3, 4),
		ExitCode: -1, Console: true, LostOutput: 5, Warnings: []string{"one", "two"},
	}
	log := LogFile{"/log", 1 << 33, 5}
	return []Coded{
		&p,
		&LaunchRequest{"a", []byte{1, 2}, true, log, [3]bool{true, false, true}, true, true, true, true, true, true},
		&Handle{p, HandleKind{true, true}},
		&ProcessList{[]Process{p, {ID: "c"}}},
		&Name{"n"}, &Number{-7}, &Greeting{1, 2}, &SignalRequest{"a", 9}, &ResizeRequest{"a", 80, 24},
		&AttachRequest{"a", true, false, true},
		&EngineRequest{[]string{"a", ""}, []string{"b=c"}, "/d", true},
		&Failure{1, 2, "text"},
	}
}

func TestMessagesComeBack(t *testing.T) {
	for _, m := range messages() {
		got := reflect.New(reflect.TypeOf(m).Elem()).Interface().(Coded)
		if err := Decode(Encode(m), got); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%T: got %+v, want %+v, %v", m, got, m, err)
		}
	}
}

func TestMessagesOfAnotherVersion(t *testing.T) {
	// Older: without fields that were added at the end.
	var p Process
	if err := Decode(Encode(&Name{"a"}), &p); err != nil || p.ID != "a" {
		t.Errorf("%+v, %v", p, err)
	}
	// Newer: with fields that are not known here.
	var n Name
	if err := Decode(append(Encode(&Name{"a"}), 1, 2, 3), &n); err != nil || n.Name != "a" {
		t.Errorf("%+v, %v", n, err)
	}
}

func FuzzDecode(f *testing.F) {
	for i, m := range messages() {
		f.Add(i, Encode(m))
	}
	f.Fuzz(func(t *testing.T, i int, b []byte) {
		all := messages()
		if i < 0 || i >= len(all) {
			return
		}
		m := reflect.New(reflect.TypeOf(all[i]).Elem()).Interface().(Coded)
		if Decode(b, m) != nil {
			return
		}
		again := reflect.New(reflect.TypeOf(m).Elem()).Interface().(Coded)
		if err := Decode(Encode(m), again); err != nil || !reflect.DeepEqual(m, again) {
			t.Errorf("%+v became %+v, %v", m, again, err)
		}
	})
}

func pair(t *testing.T) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { CloseFds(fds[:]) })
	return fds[0], fds[1]
}

func TestPackets(t *testing.T) {
	a, b := pair(t)
	buf := make([]byte, BufferSize)
	r, w, _ := os.Pipe()
	defer r.Close()
	for _, size := range []int{0, 1, inline, inline + 1, 1 << 20} {
		for _, fds := range [][]int{nil, {int(w.Fd())}, bytesOf(int(w.Fd()), MaxFds)} {
			p := &Packet{Op: Event, Seq: 7, Body: bytes.Repeat([]byte{'x'}, size), Fds: fds}
			if err := SendPacket(a, p); err != nil {
				t.Fatal(size, len(fds), err)
			}
			got, err := RecvPacket(b, buf)
			if err != nil || got.Op != Event || got.Seq != 7 || !bytes.Equal(got.Body, p.Body) || len(got.Fds) != len(fds) {
				t.Fatal(size, len(fds), err)
			}
			CloseFds(got.Fds)
		}
	}
	w.Close()
	if n, err := r.Read(buf); n != 0 || err != io.EOF {
		t.Errorf("a descriptor leaked: %d, %v", n, err)
	}
	if _, err := RecvPacket(b, buf); err != unix.EAGAIN {
		t.Errorf("nothing there: %v", err)
	}
	if err := SendPacket(a, &Packet{Body: make([]byte, MaxBody+1)}); err == nil {
		t.Error("a message too large was sent")
	}
	if err := SendPacket(a, &Packet{Fds: make([]int, MaxFds+1)}); err == nil {
		t.Error("too many descriptors were sent")
	}
	unix.Shutdown(a, unix.SHUT_WR)
	if _, err := RecvPacket(b, buf); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func bytesOf(fd, n int) []int {
	fds := make([]int, n)
	for i := range fds {
		fds[i] = fd
	}
	return fds
}

func TestBadPackets(t *testing.T) {
	pipe, w, _ := os.Pipe()
	defer pipe.Close()
	defer w.Close()
	huge, err := unix.MemfdCreate("huge", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(huge)
	unix.Ftruncate(huge, MaxBody+1)
	for name, m := range map[string]struct {
		data []byte
		fds  []int
	}{
		"short":          {[]byte{1, 0, 0}, nil},
		"too long":       {make([]byte, BufferSize+1), nil},
		"no memfd":       {[]byte{1, flagInMemfd, 0, 0, 0, 0}, nil},
		"a pipe instead": {[]byte{1, flagInMemfd, 0, 0, 0, 0}, []int{int(pipe.Fd())}},
		"huge memfd":     {[]byte{1, flagInMemfd, 0, 0, 0, 0}, []int{huge}},
		"too many":       {[]byte{1, 0, 0, 0, 0, 0}, bytesOf(int(w.Fd()), MaxFds+3)},
	} {
		a, b := pair(t)
		if err := unix.Sendmsg(a, m.data, unix.UnixRights(m.fds...), nil, 0); err != nil {
			t.Fatal(name, err)
		}
		if p, err := RecvPacket(b, make([]byte, BufferSize)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

func TestErrorsKeepTheirIdentity(t *testing.T) {
	err := fmt.Errorf("launch a: %w", &os.PathError{Op: "open", Path: "/x", Err: syscall.ENOENT})
	var got Failure
	if derr := Decode(Encode(FailureOf(err)), &got); derr != nil {
		t.Fatal(derr)
	}
	if got.Error() != err.Error() || !errors.Is(&got, fs.ErrNotExist) || !errors.Is(&got, syscall.ENOENT) || errors.Is(&got, fs.ErrExist) {
		t.Errorf("%+v", got)
	}
	long := FailureOf(errors.New(strings.Repeat("x", 100_000)))
	if len(long.Text) > 8<<10 {
		t.Error("no bound")
	}
	if !errors.Is(FailureOf(ErrSlowReader), ErrSlowReader) || !errors.Is(FailureOf(os.ErrProcessDone), os.ErrProcessDone) {
		t.Error("classes are lost")
	}
}
