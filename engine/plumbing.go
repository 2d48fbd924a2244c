package engine

import (
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// drainTimeout bounds how long output of an ended process is waited for while
// something it left behind keeps the pipe open.
const drainTimeout = 2 * time.Second

// plumbing connects a client's network streams with descriptors of a process:
// a goroutine and a pipe for each. Outputs end by themselves or by drain; the
// input's reader ends when the server closes the client's connection, which it
// does right after the stream's handler returns.
type plumbing struct {
	err     error      // of the first pipe that could not be made
	theirs  []*os.File // ends that the process gets
	outputs []*os.File // ends that we read
	copies  sync.WaitGroup
	inputs  []*os.File
}

// source returns a descriptor from which a process reads what in gives.
func (p *plumbing) source(in io.Reader) *os.File {
	if in == nil || p.err != nil {
		return nil
	}
	r, w, err := pipe(false)
	if err != nil {
		p.err = err
		return nil
	}
	p.theirs = append(p.theirs, r)
	p.inputs = append(p.inputs, w)
	go func() {
		io.Copy(w, in)
		w.Close()
	}()
	return r
}

// sink returns a descriptor whose input goes to out.
func (p *plumbing) sink(out io.WriteCloser) *os.File {
	if out == nil || p.err != nil {
		return nil
	}
	r, w, err := pipe(true)
	if err != nil {
		p.err = err
		return nil
	}
	p.theirs = append(p.theirs, w)
	p.copyOut(r, out)
	return w
}

func (p *plumbing) copyOut(r *os.File, out io.WriteCloser) {
	p.outputs = append(p.outputs, r)
	p.copies.Go(func() {
		defer out.Close()
		io.Copy(out, r)
		r.Close() // whoever writes what the client does not take is told so
	})
}

// terminal connects a pty's master. Its reads end with EIO when the last
// process has closed the other side.
func (p *plumbing) terminal(console *os.File, in io.Reader, out io.WriteCloser) {
	if in != nil {
		go io.Copy(console, in)
	}
	if out != nil {
		p.copyOut(console, out)
	}
}

// handOver closes our copies of the process's descriptors.
func (p *plumbing) handOver() {
	for _, f := range p.theirs {
		f.Close()
	}
	p.theirs = nil
}

// drain waits until all output has reached the client.
func (p *plumbing) drain() {
	for _, f := range p.outputs {
		f.SetReadDeadline(time.Now().Add(drainTimeout))
	}
	p.copies.Wait()
}

// close ends all copies and closes everything.
func (p *plumbing) close() {
	p.handOver()
	for _, f := range p.outputs {
		f.SetReadDeadline(time.Unix(1, 0))
	}
	p.copies.Wait()
	for _, f := range append(p.outputs, p.inputs...) {
		f.Close()
	}
}

// pipe makes a pipe of which one end goes to a process, which wants it to block,
// and the other stays here, where reads and writes must be interruptible.
func pipe(readHere bool) (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	ours := fds[1]
	if readHere {
		ours = fds[0]
	}
	if err := unix.SetNonblock(ours, true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// interruptible returns the same file, with reads that a deadline or a close
// ends, and closes f.
func interruptible(f *os.File) (*os.File, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
