package daemon

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// childInfo is the part of siginfo_t that waitid fills (CLD_* layout).
type childInfo struct {
	signo, errno, code int32
	_                  int32
	pid                int32
	uid                uint32
	status             int32
}

// siginfoExit reads an exit code as shells write it: 128+N for signal N.
func siginfoExit(info *unix.Siginfo) (code int, dead bool) {
	c := (*childInfo)(unsafe.Pointer(info))
	const cldExited = 1
	switch {
	case c.pid == 0:
		return 0, false
	case c.code == cldExited:
		return int(c.status), true
	}
	return 128 + int(c.status), true
}

// A supervisor's children tell of their end by their pidfds. Only a command may
// leave it an orphan, which is to become its child (command.go), and from the
// first command on others' orphans come along. Until then they are init's, and
// SIGCHLD stays with its default action: to catch it at each exec's end would wake
// up three threads.

// sigaction is the kernel's: handler, flags, restorer, mask.
type sigaction [4]uint64

func setChildAction(to, was *sigaction) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), uintptr(unsafe.Pointer(to)), uintptr(unsafe.Pointer(was)), 8, 0, 0)
	if errno != 0 {
		return os.NewSyscallError("rt_sigaction", errno)
	}
	return nil
}

// beParent goes on to adopt, after an upgrade, or does not begin to. As the first
// process of a pid namespace it gets all orphans anyway.
func (d *daemon) beParent() error {
	var subreaper int32
	if err := unix.Prctl(unix.PR_GET_CHILD_SUBREAPER, uintptr(unsafe.Pointer(&subreaper)), 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	if subreaper != 0 || os.Getpid() == 1 {
		return d.adopt()
	}
	return setChildAction(&sigaction{}, &d.onChild)
}

// adopt makes the supervisor the parent of orphans below it, from now on.
func (d *daemon) adopt() error {
	if d.adopts {
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	d.adopts = true
	if d.onChild != (sigaction{}) {
		if err := setChildAction(&d.onChild, nil); err != nil {
			return err
		}
	}
	d.sweep()
	return nil
}

// sweep reaps the orphans that were handed to the supervisor, their subreaper.
// Processes that it knows are left to their pidfds. While a fork is under way,
// an unknown child may be the fork's, which reaps it itself if it fails: then
// the sweep waits for the fork's end.
func (d *daemon) sweep() {
	for d.adopts && d.forks == 0 {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		pid := int((*childInfo)(unsafe.Pointer(&info)).pid)
		if err != nil || pid == 0 {
			return
		}
		if d.reapKnown(pid) {
			continue
		}
		if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG, nil); err != nil {
			return
		}
	}
}

// reapKnown handles the exit of a process that the supervisor knows, in case
// that it comes before its pidfd's event.
func (d *daemon) reapKnown(pid int) bool {
	if pid == d.engine.pid {
		d.engineReady()
		return true
	}
	for _, p := range d.procs {
		if p.Pid == pid && p.pidfd != nil && !p.exitSeen {
			d.pidfdReady(p)
			return true
		}
	}
	return false
}
