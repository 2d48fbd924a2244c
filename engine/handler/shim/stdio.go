package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	task "github.com/containerd/containerd/api/runtime/task/v2"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
	"google.golang.org/protobuf/types/known/emptypb"

	"podstead/sys"
)

// stdio are names under which the shim can open the stand-in's descriptors.
// Output goes the straight way. Input passes through the stand-in, because the
// shim holds the pipe open itself: of its end it must be told (CloseIO). A
// terminal is the stand-in's own, whose master the supervisor or the engine has;
// it changes no byte on the way to the container's own one.
type stdio struct {
	in, out, err string
	tty          *os.File // the slave
	feed, hold   *os.File // both ends of the pipe for input
}

func (t *Task) openStdio() (s *stdio, err error) {
	s = &stdio{}
	name := func(fd uintptr) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd) }
	if t.Console != "" {
		if s.tty, err = openTerminal(t.Console); err != nil {
			return nil, fmt.Errorf("terminal: %w", err)
		}
		s.out = name(s.tty.Fd())
		if t.Stdin || t.ExecID != "" {
			s.in = s.out
		}
		return s, nil
	}
	if t.isPod() {
		return s, nil
	}
	s.out, s.err = name(1), name(2)
	if t.Stdin {
		if s.hold, s.feed, err = os.Pipe(); err != nil {
			return nil, err
		}
		s.in = name(s.hold.Fd())
	}
	return s, nil
}

// feedStdin copies the input of a process that has been started, and tells the
// shim of its end.
func (s *stdio) feedStdin(ctx context.Context, c *client, t *Task) {
	if s.feed == nil {
		return
	}
	io.Copy(s.feed, os.Stdin)
	s.feed.Close()
	s.hold.Close()
	// The shim may close its own end before the process has read all: what is in
	// the pipe stays there.
	c.call(ctx, "CloseIO", &task.CloseIORequest{ID: t.ID, ExecID: t.ExecID, Stdin: true}, &emptypb.Empty{})
}

// resize tells the shim how large the terminal is.
func (s *stdio) resize(ctx context.Context, c *client, t *Task) {
	if s.tty == nil {
		return
	}
	size, err := unix.IoctlGetWinsize(int(s.tty.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 || size.Row == 0 {
		return
	}
	c.call(ctx, "ResizePty", &task.ResizePtyRequest{
		ID: t.ID, ExecID: t.ExecID, Width: uint32(size.Col), Height: uint32(size.Row),
	}, &emptypb.Empty{})
}

// openTerminal makes a terminal that passes everything on as it is, sends its
// master to a socket and makes it the controlling one: SIGWINCH tells of sizes.
func openTerminal(socket string) (slave *os.File, err error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer master.Close()
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, os.NewSyscallError("TIOCSPTLCK", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, os.NewSyscallError("TIOCGPTN", err)
	}
	slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if _, err = term.MakeRaw(int(slave.Fd())); err == nil {
		err = os.NewSyscallError("TIOCSCTTY", unix.IoctlSetInt(int(slave.Fd()), unix.TIOCSCTTY, 0))
	}
	if err == nil {
		err = sendTo(socket, master)
	}
	if err != nil {
		return nil, errors.Join(err, slave.Close())
	}
	return slave, nil
}

func sendTo(socket string, f *os.File) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		return &os.PathError{Op: "connect", Path: socket, Err: err}
	}
	return sys.SendMsg(fd, []byte(f.Name()), []*os.File{f})
}
