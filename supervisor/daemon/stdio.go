package daemon

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"podstead/supervisor/internal/crilog"
)

// stdio is the supervisor's end of a logged process's output: it reads the
// pipes or the pty, writes the log and copies to attached clients. All of its
// fields belong to its strand, except where they say otherwise.
type stdio struct {
	strand
	d        *daemon
	p        *process       // of the loop: strands must not look into it
	log      *crilog.Writer // nil: no log
	outputs  [2]*output     // stdout or the pty, stderr; nil once closed
	attached []*attachment
	// exited: the process is gone, and its output was drained.
	exited bool
	// reporting: a timer will try to log how much output was lost.
	reporting bool
}

// output is one stream of a process.
type output struct {
	fd     int
	token  token
	stream crilog.Stream
	pty    bool
}

const outputReady = unix.EPOLLIN | unix.EPOLLONESHOT

// pumpQuantum is how much a job reads before others get their turn.
const pumpQuantum = 1 << 20

// watch registers the outputs with the poller; it runs in the loop, before any
// job.
func (s *stdio) watch() error {
	for _, o := range s.outputs {
		if o == nil {
			continue
		}
		var err error
		o.token, err = s.d.poll.add(o.fd, outputReady, func(uint32) {
			if !s.d.quiet {
				s.do(func(mem *scratch) { s.pump(o, mem) })
			}
		})
		if err != nil {
			return fmt.Errorf("watch output: %w", err)
		}
	}
	return nil
}

// rearm looks at all outputs again, after events were ignored.
func (s *stdio) rearm() {
	s.do(func(mem *scratch) {
		for _, o := range s.outputs {
			if o != nil {
				s.pump(o, mem)
			}
		}
	})
}

// pump moves what is there.
func (s *stdio) pump(o *output, mem *scratch) {
	if s.outputs[o.stream] != o {
		return // closed by a job before this one
	}
	for moved := 0; moved < pumpQuantum; {
		n := s.readOnce(o, mem)
		if n < 0 {
			return
		}
		if n < len(mem.read) {
			s.d.poll.arm(o.fd, o.token, outputReady)
			return
		}
		moved += n
	}
	s.do(func(mem *scratch) { s.pump(o, mem) })
}

// readOnce reads and delivers one buffer. It returns 0 if there was nothing,
// and -1 if the stream has ended and was closed.
func (s *stdio) readOnce(o *output, mem *scratch) int {
	n, err := unix.Read(o.fd, mem.read[:])
	for err == unix.EINTR {
		n, err = unix.Read(o.fd, mem.read[:])
	}
	switch {
	case err == unix.EAGAIN:
		return 0
	case err != nil || n == 0: // EIO is how a pty ends
		s.closeOutput(o, mem)
		return -1
	}
	if s.log != nil {
		s.log.Write(&mem.log, o.stream, time.Now(), mem.read[:n])
		s.noteLost()
	}
	s.copyToAttached(o.stream, mem.read[:n])
	return n
}

func (s *stdio) closeOutput(o *output, mem *scratch) {
	if s.log != nil {
		s.log.End(&mem.log, o.stream, time.Now())
	}
	s.outputs[o.stream] = nil
	// The loop forgets the token first, then the number may be used again.
	s.d.post(func() {
		s.d.poll.remove(o.fd, o.token)
		unix.Close(o.fd)
	})
	s.endAttachedOutput(o.stream)
	s.closeIfDone()
}

// drain logs what the process has written before it exited, then calls done in
// the loop. Another process that inherited the output may go on writing: that
// is logged later.
func (s *stdio) drain(done func()) {
	s.do(func(mem *scratch) { s.drainOnce(mem, done, 2) })
}

// ptyGrace is how long a pty's last output may be under way in the kernel.
const ptyGrace = 10 * time.Millisecond

func (s *stdio) drainOnce(mem *scratch, done func(), tries int) {
	again := false
	for _, o := range s.outputs {
		if o == nil {
			continue
		}
		// What is in a pipe now was written before now: more cannot be due.
		due, err := unix.IoctlGetInt(o.fd, unix.TIOCINQ)
		if err != nil || o.pty {
			due = 1 << 20
		}
		n := 1
		for n > 0 && due >= 0 {
			n = s.readOnce(o, mem)
			due -= n
		}
		if o.pty && n == 0 {
			again = true
		}
	}
	if again && tries > 0 {
		time.AfterFunc(ptyGrace, func() {
			s.do(func(mem *scratch) { s.drainOnce(mem, done, tries-1) })
		})
		return
	}
	s.exited = true
	for _, o := range s.outputs {
		if o != nil && s.log != nil {
			s.log.End(&mem.log, o.stream, time.Now())
		}
	}
	s.endAttachments(nil)
	s.closeIfDone()
	s.d.post(done)
}

// closeIfDone closes the log when no output can come any more.
func (s *stdio) closeIfDone() {
	if !s.exited || s.outputs[0] != nil || s.outputs[1] != nil || s.log == nil {
		return
	}
	s.log.Close()
	s.log = nil
}

// abandon closes everything, when the process is forgotten while others still
// hold its output.
func (s *stdio) abandon() {
	s.do(func(mem *scratch) {
		s.exited = true
		for _, o := range s.outputs {
			if o != nil {
				s.closeOutput(o, mem)
			}
		}
		s.endAttachments(nil)
		s.closeIfDone()
	})
}

// reopen opens the log's path anew and calls done in the loop.
func (s *stdio) reopen(done func(error)) {
	s.do(func(*scratch) {
		err := fmt.Errorf("log is closed: %w", errGone)
		if s.log != nil && !s.exited {
			err = s.log.Reopen()
		}
		s.d.post(func() { done(err) })
	})
}

// noteLost arranges that lost output is reported even if no more comes.
func (s *stdio) noteLost() {
	if !s.log.NeedsReport() {
		return
	}
	lost := s.log.Lost
	s.d.post(func() { s.p.LostOutput = lost })
	if s.reporting {
		return
	}
	s.reporting = true
	time.AfterFunc(reportEvery, func() {
		s.do(func(*scratch) {
			s.reporting = false
			if s.log != nil && !s.log.Report() {
				s.noteLost()
			}
		})
	})
}

const reportEvery = 2 * time.Second
