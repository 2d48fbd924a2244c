package pressure

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Near calls told, one call at a time, when a cgroup comes near its limit of
// memory, until ctx ends. dir is the group's directory. On cgroup v2 the kernel
// tells when the group's limit makes it reclaim or kill (memory.events); on v1
// when its usage crosses so many bytes. It costs a sleeping thread.
func Near(ctx context.Context, dir string, bytes int64, told func()) error {
	if _, err := os.Stat(filepath.Join(dir, "memory.events")); err == nil {
		return events(ctx, filepath.Join(dir, "memory.events"), told)
	}
	return crossings(ctx, dir, bytes, told)
}

// events waits for a kernel file that can be polled to have another content. It
// has to be read before it is waited for again.
func events(ctx context.Context, file string, told func()) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	var last string
	read := func() (string, error) {
		buf := make([]byte, 4096)
		n, err := unix.Pread(int(f.Fd()), buf, 0)
		if err != nil {
			return "", &os.PathError{Op: "read", Path: file, Err: err}
		}
		return string(buf[:n]), nil
	}
	if last, err = read(); err != nil {
		return err
	}
	return poll(ctx, int(f.Fd()), unix.POLLPRI, func(int16) error {
		now, err := read()
		if err == nil && now != last {
			last = now
			told()
		}
		return err
	})
}

// crossings has the kernel write into an eventfd whenever a group of cgroup v1
// comes to use more than so many bytes, or less again.
func crossings(ctx context.Context, dir string, bytes int64, told func()) error {
	usage, err := os.Open(filepath.Join(dir, "memory.usage_in_bytes"))
	if err != nil {
		return err
	}
	defer usage.Close()
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	defer unix.Close(event)
	control := filepath.Join(dir, "cgroup.event_control")
	if err := os.WriteFile(control, fmt.Appendf(nil, "%d %d %d", event, usage.Fd(), bytes), 0); err != nil {
		return err
	}
	return poll(ctx, event, unix.POLLIN, func(int16) error {
		var count [8]byte
		if _, err := unix.Read(event, count[:]); err != nil && !errors.Is(err, unix.EAGAIN) {
			return os.NewSyscallError("read eventfd", err)
		}
		if _, err := os.Stat(control); err != nil {
			return err // the group is gone: that is told, too
		}
		told()
		return nil
	})
}

// poll calls happened with what fd has whenever that is what is asked for, or an
// error, until ctx ends. Some files of the kernel tell of a change as an error,
// so that is the caller's to judge.
func poll(ctx context.Context, fd int, what int16, happened func(events int16) error) error {
	var end [2]int
	if err := unix.Pipe2(end[:], unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("pipe", err)
	}
	defer unix.Close(end[0])
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		unix.Close(end[1])
		close(closed)
	})
	defer func() {
		if stop() {
			unix.Close(end[1])
		} else {
			<-closed
		}
	}()
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: what}, {Fd: int32(end[0])}}
		_, err := unix.Poll(fds, -1)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("poll", err)
		case fds[0].Revents&unix.POLLNVAL != 0:
			return os.ErrClosed
		case fds[0].Revents != 0:
			if err := happened(fds[0].Revents); err != nil {
				return err
			}
		}
	}
}
