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
// until ctx ends; it costs a sleeping thread meanwhile. A kernel without pressure
// stall information, or that forbids to be asked, is an error at once.
func Stalls(ctx context.Context, told func()) error {
	return stalls(ctx, memoryTrigger, told)
}

func stalls(ctx context.Context, trigger string, told func()) error {
	psi, err := unix.Open("/proc/pressure/memory", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/proc/pressure/memory", Err: err}
	}
	defer unix.Close(psi)
	// The kernel wants the string with its end.
	if _, err := unix.Write(psi, append([]byte(trigger), 0)); err != nil {
		return os.NewSyscallError("ask for stalls for memory", err)
	}
	// Stalls are told of as an exceptional condition, once, to who looks first.
	// Go's poller does not ask for those, and one epoll inside another would have
	// them seen by the outer and gone for the inner.
	return poll(ctx, psi, unix.POLLPRI, func(events int16) error {
		if events&unix.POLLERR != 0 {
			return &os.PathError{Op: "poll", Path: "/proc/pressure/memory", Err: os.ErrClosed}
		}
		if events&unix.POLLPRI != 0 {
			told()
		}
		return nil
	})
}
