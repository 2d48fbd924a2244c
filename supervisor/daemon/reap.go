package daemon

import (
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

// sweep reaps the orphans that were handed to the supervisor, their subreaper.
// Processes that it knows are left to their pidfds. While a fork is under way,
// an unknown child may be the fork's, which reaps it itself if it fails: then
// the sweep waits for the fork's end.
func (d *daemon) sweep() {
	for d.forks == 0 {
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
