package oci

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// session is a process in the foreground: its terminal is connected with ours,
// our signals are its signals, and its exit status will be ours.
type session struct {
	pid     int
	pidfd   *os.File
	console *os.File // pty master, or nil
	signals chan os.Signal
	restore func() // of our terminal
	copies  sync.WaitGroup
}

// newSession is to be called before the process starts, so that no signal is
// lost and no output unread. close undoes it.
func newSession(pid int, pidfd, console *os.File) (*session, error) {
	s := &session{pid: pid, pidfd: pidfd, console: console, restore: func() {}}
	s.signals = make(chan os.Signal, 128)
	signal.Notify(s.signals)
	if console == nil {
		return s, nil
	}
	var err error
	if s.restore, err = makeRaw(int(os.Stdin.Fd())); err != nil {
		signal.Stop(s.signals)
		return nil, err
	}
	s.resize()
	go io.Copy(console, os.Stdin) // ends with this process: a read cannot be called off
	s.copies.Go(func() { io.Copy(os.Stdout, console) })
	return s, nil
}

// wait forwards signals until the process ends, and reaps it.
func (s *session) wait() (code int, err error) {
	done := make(chan struct{})
	var status unix.WaitStatus
	go func() {
		defer close(done)
		for {
			if _, err = unix.Wait4(s.pid, &status, unix.WALL, nil); err != unix.EINTR {
				return
			}
		}
	}()
	for {
		select {
		case sig := <-s.signals:
			s.forward(sig)
			continue
		case <-done:
		}
		break
	}
	if err != nil {
		return -1, fmt.Errorf("wait for process %d: %w", s.pid, err)
	}
	return exitCode(status), nil
}

func exitCode(status unix.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

func (s *session) forward(sig os.Signal) {
	switch sig {
	case unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE: // the Go runtime's and our own
	case unix.SIGWINCH:
		s.resize()
	default:
		// A process that is gone gets no signal; its end is noticed elsewhere.
		_ = unix.PidfdSendSignal(int(s.pidfd.Fd()), sig.(syscall.Signal), nil, 0)
	}
}

// resize gives the process's terminal the size of ours.
func (s *session) resize() {
	if s.console == nil {
		return
	}
	if size, err := unix.IoctlGetWinsize(int(os.Stdin.Fd()), unix.TIOCGWINSZ); err == nil {
		_ = unix.IoctlSetWinsize(int(s.console.Fd()), unix.TIOCSWINSZ, size)
	}
}

// close takes in what the process has still written to its terminal.
func (s *session) close() {
	signal.Stop(s.signals)
	s.copies.Wait()
	s.restore()
}

// makeRaw hands every key to the process behind; what is no terminal stays as
// it is.
func makeRaw(fd int) (restore func(), err error) {
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EBADF) || errors.Is(err, unix.EINVAL) {
		return func() {}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read terminal settings: %w", err)
	}
	raw := *old
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return nil, fmt.Errorf("make terminal raw: %w", err)
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, old) }, nil
}
