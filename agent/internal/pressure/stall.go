package pressure

import (
	"context"
	"os"

	"golang.org/x/sys/unix"
)

// memoryTrigger has the kernel tell when somebody has waited for memory 150 ms
// in a window of 2 s, at most once per window.
const memoryTrigger = "some 150000 2000000"

// Stalls calls told, one call at a time, whenever programs stall for memory,
// until ctx ends; it costs nothing meanwhile. A kernel without pressure stall
// information, or that forbids to be asked, is an error at once.
func Stalls(ctx context.Context, told func()) error {
	psi, err := unix.Open("/proc/pressure/memory", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/proc/pressure/memory", Err: err}
	}
	defer unix.Close(psi)
	// The kernel wants the string with its end.
	if _, err := unix.Write(psi, append([]byte(memoryTrigger), 0)); err != nil {
		return os.NewSyscallError("ask for stalls for memory", err)
	}
	// What is told is an exceptional condition (POLLPRI), for which Go's poller
	// does not wait; it does wait for an epoll descriptor to become readable.
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create", err)
	}
	if err := unix.SetNonblock(poll, true); err != nil {
		unix.Close(poll)
		return os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(poll), "stalls for memory")
	defer f.Close()
	if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, psi, &unix.EpollEvent{Events: unix.EPOLLPRI}); err != nil {
		return os.NewSyscallError("epoll_ctl", err)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { f.Close() })()
	for {
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			var events [1]unix.EpollEvent
			n, err := unix.EpollWait(int(fd), events[:], 0)
			if err != nil && err != unix.EINTR {
				failed = os.NewSyscallError("epoll_wait", err)
				return true
			}
			return n > 0
		})
		if err == nil {
			err = failed
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		told()
	}
}
