package criu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Types of requests and responses (criu_req_type of CRIU's rpc.proto).
const (
	typeDump          = 1
	typeRestore       = 2
	typePreDump       = 4
	typeNotify        = 6
	typeVersion       = 10
	typeSinglePreDump = 13
)

// Notification is what CRIU says that it has done, and waits with.
type Notification struct {
	// Script names the moment; see the constants.
	Script string
	// Pid is the first restored process, in the pid namespace of CRIU.
	Pid int
	// File came with it: the master of a terminal. It is the callee's.
	File *os.File
}

// Moments of a dump and of a restore, in their order.
const (
	PreDump  = "pre-dump"
	PostDump = "post-dump"
	// StatusReady: a lazy dump or page server waits for its client.
	StatusReady = "status-ready"

	// SetupNamespaces: the first process is there, in its namespaces.
	SetupNamespaces = "setup-namespaces"
	// OrphanPtsMaster brings the master of the container's terminal.
	OrphanPtsMaster = "orphan-pts-master"
	// PostRestore: everything is there but the credentials; an error ends the
	// restore.
	PostRestore = "post-restore"
	// PreResume: everything is there, nothing runs. CRIU goes on whatever the
	// answer is: who does not want that kills the processes first.
	PreResume = "pre-resume"
)

// response is a criu_resp, as far as it is of interest.
type response struct {
	typ     int
	success bool
	pid     int // of restore
	script  string
	notePid int
	errno   int
	text    string
	version int
}

// maxMessage bounds a response; CRIU sends small ones.
const maxMessage = 64 << 10

// call sends a request and answers CRIU's notifications until the response. When
// ctx ends, the call does; whether CRIU goes on is the caller's business.
func (c *Conn) call(ctx context.Context, typ int, opts []byte, notify func(Notification) error) (response, error) {
	stop := context.AfterFunc(ctx, func() { c.sock.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var req message
	req.number(1, uint64(typ))
	if opts != nil {
		req.bytes(2, opts)
	}
	if err := c.send(ctx, req); err != nil {
		return response{}, err
	}
	var refused error // by our own side; CRIU's words for it say less
	for {
		resp, file, err := c.receive(ctx)
		if err != nil && refused != nil {
			return resp, refused
		}
		if err != nil {
			return resp, err
		}
		if resp.typ != typeNotify {
			if file != nil {
				file.Close()
			}
			if resp.typ != typ {
				return resp, fmt.Errorf("criu answers %d to a request of type %d", resp.typ, typ)
			}
			if refused != nil {
				return resp, refused
			}
			return resp, resp.err()
		}
		err = c.notified(notify, resp, file)
		if err != nil {
			refused = errors.Join(refused, &refusal{err})
		}
		var answer message
		answer.number(1, typeNotify)
		answer.number(3, map[bool]uint64{true: 1}[err == nil])
		if err := c.send(ctx, answer); err != nil && refused == nil {
			return resp, err
		} else if err != nil {
			return resp, refused
		}
	}
}

// refusal is an error of our own side.
type refusal struct{ error }

func (r *refusal) Unwrap() error { return r.error }

func (c *Conn) notified(notify func(Notification) error, resp response, file *os.File) error {
	if notify == nil {
		if file != nil {
			file.Close()
		}
		return nil
	}
	return notify(Notification{Script: resp.script, Pid: resp.notePid, File: file})
}

func (c *Conn) send(ctx context.Context, m message) error {
	if _, err := c.sock.Write(m); err != nil {
		return c.failed(ctx, err)
	}
	return nil
}

// failed prefers the context's reason to the socket's.
func (c *Conn) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return errors.New("criu has ended without an answer")
	}
	return fmt.Errorf("talk to criu: %w", err)
}

func (c *Conn) receive(ctx context.Context) (resp response, file *os.File, err error) {
	buf, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
	n, oobn, flags, _, err := c.sock.ReadMsgUnix(buf, oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return resp, nil, c.failed(ctx, err)
	}
	if file, err = oneFile(oob[:oobn]); err != nil {
		return resp, nil, err
	}
	if flags&unix.MSG_TRUNC != 0 {
		err = fmt.Errorf("a message of more than %d bytes", maxMessage)
	} else {
		resp, err = decodeResponse(buf[:n])
	}
	if err != nil {
		if file != nil {
			file.Close()
		}
		return resp, nil, fmt.Errorf("response of criu: %w", err)
	}
	return resp, file, nil
}

// oneFile returns the descriptor that came with a message, if one did.
func oneFile(oob []byte) (*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var file *os.File
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			if file != nil {
				unix.Close(fd)
				continue
			}
			file = os.NewFile(uintptr(fd), "from criu")
		}
	}
	return file, nil
}

func decodeResponse(b []byte) (response, error) {
	var r response
	err := fields(b, func(f field) error {
		switch f.number {
		case 1:
			r.typ = int(f.value)
		case 2:
			r.success = f.value != 0
		case 4:
			return fields(f.bytes, func(f field) error {
				if f.number == 1 {
					r.pid = int(int32(f.value))
				}
				return nil
			})
		case 5:
			return fields(f.bytes, func(f field) error {
				switch f.number {
				case 1:
					r.script = string(f.bytes)
				case 2:
					r.notePid = int(int32(f.value))
				}
				return nil
			})
		case 7:
			r.errno = int(int32(f.value))
		case 9:
			r.text = string(f.bytes)
		case 10:
			return fields(f.bytes, r.versionField)
		}
		return nil
	})
	return r, err
}

func (r *response) versionField(f field) error {
	switch f.number {
	case 1:
		r.version += int(f.value) * 10000
	case 2:
		r.version += int(f.value) * 100
	case 4:
		r.version += int(f.value)
	}
	return nil
}

// Error is what CRIU says went wrong.
type Error struct {
	Text  string
	Errno syscall.Errno // 0 if it says none
}

func (e *Error) Error() string { return e.Text }

func (e *Error) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// err is what CRIU's response says went wrong; its log says more.
func (r *response) err() error {
	if r.success {
		return nil
	}
	e := &Error{Errno: syscall.Errno(max(r.errno, 0))}
	switch lines := errorLines(r.text, 3); {
	case len(lines) > 0:
		e.Text = strings.Join(lines, "; ")
	case r.errno > 0:
		e.Text = e.Errno.Error()
	default:
		e.Text = "failed"
	}
	return e
}
