package sys

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// MaxFds is how many descriptors the kernel passes with one message
// (SCM_MAX_FD).
const MaxFds = 253

// ErrTruncated says that a message or its descriptors did not fit; nothing of
// it is returned and received descriptors are closed.
var ErrTruncated = errors.New("message truncated")

// SendMsg sends one message with descriptors over an AF_UNIX socket. The
// caller keeps its own copies of files.
func SendMsg(fd int, data []byte, files []*os.File) error {
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			n, err := Descriptor(f)
			if err != nil {
				return err
			}
			fds[i] = n
		}
		oob = unix.UnixRights(fds...)
	}
	defer runtime.KeepAlive(files)
	for {
		err := unix.Sendmsg(fd, data, oob, nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return os.NewSyscallError("sendmsg", err)
		}
	}
}

// Descriptor returns a file's descriptor, good while f is open, and leaves it as
// it is: File.Fd would make the open file block, and with it every copy of a
// listener that Go polls.
func Descriptor(f *os.File) (n int, err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	err = conn.Control(func(fd uintptr) { n = int(fd) })
	return n, err
}

// RecvMsg receives one message into buf, and its descriptors, which are
// close-on-exec. It returns io.EOF when the peer is gone.
func RecvMsg(fd int, buf []byte) (n int, files []*os.File, err error) {
	oob := make([]byte, unix.CmsgSpace(MaxFds*4))
	var oobn, flags int
	for {
		n, oobn, flags, _, err = unix.Recvmsg(fd, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return 0, nil, os.NewSyscallError("recvmsg", err)
	}
	files, err = parseRights(oob[:oobn])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = ErrTruncated
	}
	if err != nil {
		CloseAll(files)
		return 0, nil, err
	}
	if n == 0 && len(files) == 0 {
		return 0, nil, io.EOF
	}
	return n, files, nil
}

func parseRights(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	var files []*os.File
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return files, fmt.Errorf("parse rights: %w", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// CloseAll closes all files, nil ones excepted.
func CloseAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// Dup returns a copy of f, close-on-exec; closing one leaves the other open.
// Whether the open file blocks stays as it is, see Descriptor.
func Dup(f *os.File) (*os.File, error) {
	n, err := Descriptor(f)
	if err != nil {
		return nil, err
	}
	defer runtime.KeepAlive(f)
	fd, err := unix.FcntlInt(uintptr(n), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
