package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"podstead/supervisor/internal/crilog"
	"podstead/supervisor/internal/protocol"
	"podstead/sys"
)

// recoverAll finds what a supervisor that was killed left running. A record
// that cannot be read is set aside.
func (d *daemon) recoverAll() {
	paths, _ := filepath.Glob(d.statePath("*" + recordSuffix))
	for _, path := range paths {
		var s savedProcess
		if err := readState(path, &s); err != nil {
			d.log.Error("record set aside", "path", path, "err", err)
			os.Rename(path, path+".bad")
			continue
		}
		d.recoverProcess(&s)
	}
	d.recoverEngine()
}

// newProcess makes a process of what was saved, without any descriptor.
func newProcess(s *savedProcess) *process {
	return &process{
		Process:   s.Process,
		Log:       s.Log,
		StdinOnce: s.StdinOnce,
		once:      s.Once,
		reaps:     s.Reaps,
		program:   s.Program,
		pipes:     s.Pipes,
		stdin:     -1,
		recorded:  true,
		exitSeen:  s.Process.State == exited,
		attached:  map[*attachment]bool{},
	}
}

// recoverProcess watches a process again that is no child of this supervisor.
// One that waited for its start ends by itself.
func (d *daemon) recoverProcess(s *savedProcess) {
	p := newProcess(s)
	p.reaps = false
	d.procs[p.ID] = p
	if p.State == exited {
		return
	}
	pidfd, err := sys.OpenPidfd(p.Pid, p.StartTicks)
	if err != nil {
		// A client may have kept a pidfd, and tell more.
		p.exitSeen, p.State = true, exited
		p.ExitCode, p.ExitedAt = unknownExit, time.Now()
		d.writeRecord(p)
		return
	}
	p.pidfd = pidfd
	_, dead := exitStatus(int(pidfd.Fd()), p.Pid, false)
	if s.Logged && !dead {
		if err := d.recoverOutput(p, s); err != nil {
			d.log.Error("output lost", "process", p.ID, "err", err)
		}
	}
	if err := d.watchExit(p); err != nil {
		d.log.Error("watch process", "process", p.ID, "err", err)
	}
	d.log.Info("process recovered", "process", p.ID, "pid", p.Pid, "state", string(p.State))
}

// recoverOutput opens a process's output pipes through /proc and goes on with
// its log.
func (d *daemon) recoverOutput(p *process, s *savedProcess) error {
	var log *crilog.Writer
	var errs []error
	if p.Log.Path != "" {
		var err error
		if log, err = crilog.Open(crilog.Options(p.Log)); err != nil {
			errs = append(errs, err)
		}
	}
	fds := [3]int{-1, -1, -1}
	for i, inode := range s.Pipes {
		if inode == 0 {
			continue
		}
		mode := unix.O_RDONLY
		if i == 0 {
			if p.StdinOnce {
				continue // it ended with its writer
			}
			mode = unix.O_WRONLY
		}
		var err error
		if fds[i], err = openPipe(p.Pid, inode, mode); err != nil {
			errs = append(errs, err)
		}
	}
	p.stdin = fds[0]
	p.io = newStdio(d, p, log, [2]int(fds[1:]), false)
	return errors.Join(append(errs, p.io.watch())...)
}

// openPipe opens a pipe that a process has open. The process may put something
// else in its place at any time, such as a file that it may not open itself:
// what is opened is first held without opening it, and looked at.
func openPipe(pid int, inode uint64, mode int) (int, error) {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd/"
	want := "pipe:[" + strconv.FormatUint(inode, 10) + "]"
	d, err := os.Open(dir)
	if err != nil {
		return -1, err
	}
	names, err := d.Readdirnames(-1)
	d.Close()
	if err != nil {
		return -1, err
	}
	for _, name := range names {
		if target, err := os.Readlink(dir + name); err != nil || target != want {
			continue
		}
		held, err := unix.Open(dir+name, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		if pipeInode(held) != inode {
			unix.Close(held)
			continue
		}
		fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(held), mode|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		unix.Close(held)
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: dir + name, Err: err}
		}
		return fd, nil
	}
	return -1, fmt.Errorf("process %d has no %s: %w", pid, want, errNotExist)
}

// pipeInode tells which pipe a descriptor is.
func pipeInode(fd int) uint64 {
	var st unix.Stat_t
	if fd < 0 || unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return 0
	}
	return st.Ino
}

func (d *daemon) recoverEngine() {
	var s savedEngine
	err := readState(d.statePath(engineRecord), &s)
	if errors.Is(err, errNotExist) {
		return
	}
	if err != nil || !s.Wanted {
		d.log.Error("engine's record", "err", err)
		return
	}
	null := func() int {
		fd, err := unix.FcntlInt(d.forker.Null().Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return -1
		}
		return fd
	}
	d.engine = engine{req: &s.Request, out: [2]int{null(), null()}, pidfd: -1, exits: 1}
	e := &d.engine
	if f, err := sys.OpenPidfd(s.Pid, s.StartTicks); s.Pid != 0 && err == nil {
		defer f.Close()
		e.pidfd, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err == nil {
			e.pid, e.ticks, e.begun = s.Pid, s.StartTicks, s.Begun
			e.token, err = d.poll.add(e.pidfd, unix.EPOLLIN, func(uint32) { d.engineReady() })
		}
		if err != nil {
			d.log.Error("watch engine", "err", err)
		}
	}
	if e.pid == 0 {
		d.respawnLater() // unless its front asks for it first
	}
}

// returned takes back what a client kept of a process for its supervisor.
func (d *daemon) returned(h *protocol.Handle, fds []int) error {
	defer func() { protocol.CloseFds(fds) }()
	take := func(has bool) int {
		if !has || len(fds) == 0 {
			return -1
		}
		fd := fds[0]
		fds = fds[1:]
		return fd
	}
	pidfd, console := take(h.Kind.Pidfd), take(h.Kind.Console)
	defer func() { protocol.CloseFds([]int{pidfd, console}) }()
	p := d.procs[h.Process.ID]
	if p == nil || p.reaps {
		return nil // forgotten, or never lost
	}
	if p.State == exited {
		if p.ExitCode == unknownExit && pidfd >= 0 {
			if code, ok := pidfdExit(pidfd, p.Pid); ok {
				p.ExitCode = code
				d.writeRecord(p)
			}
		}
		return nil
	}
	if p.Console && p.stdin < 0 && console >= 0 {
		return d.returnConsole(p, &console)
	}
	return nil
}

// returnConsole goes on with a pty.
func (d *daemon) returnConsole(p *process, console *int) error {
	p.stdin, *console = *console, -1
	if p.io == nil {
		return nil
	}
	fd, err := unix.FcntlInt(uintptr(p.stdin), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("copy pty: %w", err)
	}
	log, err := (*crilog.Writer)(nil), error(nil)
	if p.Log.Path != "" {
		log, err = crilog.Open(crilog.Options(p.Log))
	}
	p.io.abandon()
	p.io = newStdio(d, p, log, [2]int{fd, -1}, true)
	return errors.Join(err, p.io.watch())
}

// pidfdExit asks the kernel for the exit code of a dead process that was not
// our child. One that nobody reaped yet tells in /proc; later the pidfd does,
// since Linux 6.15.
func pidfdExit(pidfd, pid int) (code int, ok bool) {
	if code, ok := pidfdInfoExit(pidfd); ok {
		return code, true
	}
	if code, ok := zombieExit(pid); ok {
		return code, true
	}
	return pidfdInfoExit(pidfd) // if it was reaped between the two
}

func pidfdInfoExit(pidfd int) (code int, ok bool) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if err := unix.IoctlPidfdInfo(pidfd, &info); err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0 {
		return waitStatus(int(info.Exit_code)), true
	}
	return 0, false
}

func zombieExit(pid int) (code int, ok bool) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false
	}
	_, fields := sys.ParseStat(stat)
	const stateField, exitField = 3 - 3, 52 - 3
	if len(fields) <= exitField || fields[stateField] != "Z" {
		return 0, false
	}
	status, err := strconv.Atoi(fields[exitField])
	return waitStatus(status), err == nil
}

// waitStatus makes an exit code of what wait(2) returns.
func waitStatus(status int) int {
	ws := unix.WaitStatus(status)
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}
