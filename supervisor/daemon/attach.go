package daemon

import (
	"fmt"

	"golang.org/x/sys/unix"

	"podstead/supervisor/internal/crilog"
	"podstead/supervisor/internal/protocol"
)

// attachment copies a process's output to pipes of a client. The pipe is the
// buffer: a client that lets it run full is cut off, because neither may the
// log wait for it, nor may bytes be missing from the middle of a stream.
//
// Standard input does not pass through here: the client gets a copy of the
// pipe's write end, or of the pty.
type attachment struct {
	conn *conn
	seq  uint32
	p    *process
	// stdin: the client has a copy of the input. Loop only.
	stdin bool
	// outs are the client's pipes, -1 if not wanted or closed. Strand only.
	outs [2]int
}

// attachPipeSize is asked for; the kernel may give less.
const attachPipeSize = 1 << 20

// attach handles an Attach request.
func (d *daemon) attach(c *conn, seq uint32, req *protocol.AttachRequest, fds []int) error {
	p, err := d.process(req.ID)
	if err != nil {
		return err
	}
	want := 0
	a := &attachment{conn: c, seq: seq, p: p, outs: [2]int{-1, -1}}
	for i, wanted := range []bool{req.Stdout, req.Stderr} {
		if wanted && want < len(fds) {
			a.outs[i] = fds[want]
			want++
		}
	}
	switch {
	case want != len(fds):
		return fmt.Errorf("attach %s: %d descriptors: %w", req.ID, len(fds), protocol.ErrMalformed)
	case p.exitSeen:
		return fmt.Errorf("attach %s: %w", req.ID, errGone)
	case p.io == nil:
		return fmt.Errorf("attach %s: its output is not logged: %w", req.ID, errInvalid)
	case req.Stdin && p.stdin < 0:
		return fmt.Errorf("attach %s: it has no standard input, or that is closed: %w", req.ID, errInvalid)
	}
	reply := &protocol.Packet{Op: protocol.Event, Seq: seq}
	if req.Stdin {
		a.stdin = true
		reply.Fds = []int{p.stdin}
	}
	for _, fd := range fds {
		unix.SetNonblock(fd, true)
		unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, attachPipeSize)
	}
	p.attached[a] = true
	c.attached[seq] = a
	p.io.do(func(*scratch) {
		if p.io.exited {
			p.io.end(a, nil)
			return
		}
		p.io.attached = append(p.io.attached, a)
	})
	c.send(reply)
	return nil
}

// closeStdin notes that an attached client has closed its input, or goes.
func (d *daemon) closeStdin(a *attachment) {
	if !a.stdin {
		return
	}
	a.stdin = false
	if a.p.StdinOnce && !a.p.Console {
		a.p.closeStdin()
	}
}

// detach ends an attachment from the client's side.
func (d *daemon) detach(a *attachment) {
	a.p.io.do(func(*scratch) { a.p.io.end(a, nil) })
}

// copyToAttached gives output to those who want it.
func (s *stdio) copyToAttached(stream crilog.Stream, data []byte) {
	for i := len(s.attached) - 1; i >= 0; i-- {
		a := s.attached[i]
		fd := a.outs[stream]
		if fd < 0 {
			continue
		}
		n, err := unix.Write(fd, data)
		for err == unix.EINTR {
			n, err = unix.Write(fd, data)
		}
		switch {
		case err == unix.EAGAIN, err == nil && n < len(data):
			s.end(a, protocol.ErrSlowReader)
		case err != nil:
			s.closeAttached(a, stream)
		}
	}
}

// endAttachedOutput closes one output of all attachments.
func (s *stdio) endAttachedOutput(stream crilog.Stream) {
	for i := len(s.attached) - 1; i >= 0; i-- {
		s.closeAttached(s.attached[i], stream)
	}
}

// closeAttached closes one output of an attachment; the last one ends it.
func (s *stdio) closeAttached(a *attachment, stream crilog.Stream) {
	if a.outs[stream] < 0 {
		return
	}
	unix.Close(a.outs[stream])
	a.outs[stream] = -1
	if a.outs[0] < 0 && a.outs[1] < 0 {
		s.end(a, nil)
	}
}

// endAttachments ends them all.
func (s *stdio) endAttachments(err error) {
	for len(s.attached) > 0 {
		s.end(s.attached[len(s.attached)-1], err)
	}
}

// end closes an attachment's outputs and tells its client. A second end does
// nothing but answer nobody.
func (s *stdio) end(a *attachment, err error) {
	protocol.CloseFds(a.outs[:])
	a.outs = [2]int{-1, -1}
	for i, other := range s.attached {
		if other == a {
			s.attached = append(s.attached[:i], s.attached[i+1:]...)
			break
		}
	}
	s.d.post(func() {
		if a.conn.attached[a.seq] != a {
			return
		}
		delete(a.conn.attached, a.seq)
		delete(a.p.attached, a)
		s.d.closeStdin(a)
		a.conn.answer(a.seq, nil, err)
	})
}
