package launch

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"podstead/oci/launch/internal/rlimit"
)

// The runtime's hooks for a fork: they block signals, and restore in the child
// what was before. The linker allows this use (see the comments in Go's
// runtime/proc.go, which name gVisor).

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

// A clone may have to wait in the kernel, for the lock of the cgroups for example.
// These tell Go's scheduler, as for other system calls, that others can go on
// meanwhile. (The linker allows this use, too.)

//go:linkname enterSyscall runtime.entersyscall
func enterSyscall()

//go:linkname exitSyscall runtime.exitsyscall
func exitSyscall()

// newMachine lays out everything that the child will touch, on a stage that
// the caller has to close.
func (f *Forker) newMachine(p *Program, files []*os.File, std []int, sync int, listener *os.File) (*machine, *stage, error) {
	keep := []int{sync}
	for fd := range std {
		keep = append(keep, fd)
	}
	if listener != nil {
		keep = append(keep, int(listener.Fd()))
	}
	for _, f := range files {
		keep = append(keep, int(f.Fd()))
	}
	first := prologue(std, keep)
	has := func(c callID) bool { return slices.ContainsFunc(p.ops, func(o op) bool { return o.call == c }) }
	copies, makes := has(cCopyUp), has(cMakePath)
	size := sizeOf[machine](1) + sizeOf[byte](len(p.data)+8) + sizeOf[uintptr](p.regs+1) + sizeOf[rawOp](len(first)+len(p.ops))
	if copies {
		size += sizeOf[copyUp](1)
	}
	if makes {
		size += sizeOf[makePath](1)
	}
	s, err := f.newStage(size)
	if err != nil {
		return nil, nil, err
	}
	m := &place[machine](s, 1)[0]
	m.regs = place[uintptr](s, p.regs+1)
	m.reg0 = &m.regs[0]
	m.sync, m.listen, m.extra = uintptr(sync), noListener, uintptr(len(std)-3)
	m.nofile, m.ignored = rlimit.NoFile(), f.ignored()
	if listener != nil {
		m.listen = listener.Fd()
	}
	for i, f := range files {
		m.regs[i] = f.Fd()
	}
	if copies {
		m.copyUp = &place[copyUp](s, 1)[0]
	}
	if makes {
		m.path = &place[makePath](s, 1)[0]
	}
	data := place[byte](s, len(p.data)+8)
	copy(data, p.data)
	base := uintptr(unsafe.Pointer(&data[0]))
	for _, r := range p.relocs {
		binary.NativeEndian.PutUint64(data[r.at:], uint64(base)+uint64(r.to))
	}
	m.ops = place[rawOp](s, len(first)+len(p.ops))
	m.prologue = copy(m.ops, first)
	for i := range p.ops {
		m.ops[len(first)+i] = p.ops[i].raw(base)
	}
	m.first, m.count = &m.ops[0], len(m.ops)
	m.clone = cloneArgs{
		pidfd: uint64(uintptr(unsafe.Pointer(&m.pidfd))), exitSignal: uint64(unix.SIGCHLD),
		stack: uint64(s.base()), stackSize: stackSize, tls: uint64(s.thread()),
	}
	m.iov = [2]uintptr{uintptr(unsafe.Pointer(&m.msg)), messageSize}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&m.control))
	h.Level, h.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS
	h.SetLen(unix.CmsgLen(4))
	m.hdr = msghdr{
		iov: uintptr(unsafe.Pointer(&m.iov)), iovlen: 1,
		control: uintptr(unsafe.Pointer(&m.control)), controllen: uint64(len(m.control)),
	}
	return m, s, nil
}

// raw resolves an op against the address of its data.
func (o *op) raw(base uintptr) rawOp {
	r := rawOp{nr: calls[o.call].nr, out: o.out, skipOK: o.skipOK, skipErr: o.skipErr, pass: o.pass}
	for i, a := range o.args {
		r.regs[i] = noReg
		switch a.kind {
		case argInt:
			r.args[i] = uintptr(a.value)
		case argData:
			r.args[i] = base + uintptr(a.value)
		case argReg:
			r.regs[i] = uint16(a.value)
		}
	}
	return r
}

// prologue moves stdio into place and closes every descriptor that is not in
// keep: the forker's other descriptors, ends of other containers' pipes among
// them, must not live on in a child that waits.
func prologue(std []int, keep []int) []rawOp {
	var ops []rawOp
	do := func(nr uintptr, args ...uintptr) {
		r := rawOp{nr: nr, out: noReg}
		copy(r.args[:], args)
		for i := range r.regs {
			r.regs[i] = noReg
		}
		ops = append(ops, r)
	}
	for i, fd := range std {
		do(unix.SYS_DUP3, uintptr(fd), uintptr(i), 0)
	}
	slices.Sort(keep)
	next := 3
	for _, fd := range keep {
		if fd > next {
			do(unix.SYS_CLOSE_RANGE, uintptr(next), uintptr(fd-1), 0)
		}
		next = max(next, fd+1)
	}
	do(unix.SYS_CLOSE_RANGE, uintptr(next), 0xffffffff, 0)
	return ops
}

// fork makes the child; sync is its end of the control socket.
func (p *Program) fork(files []*os.File, std []int, sync int, opt *ForkOptions, started bool) (pid, pidfd int, err error) {
	// Between here and the clone nobody else may keep memory from children, or
	// they would keep this stage.
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	opt.Forker.keepMemory()
	m, stage, err := opt.Forker.newMachine(p, files, std, sync, opt.Listener)
	if err != nil {
		return 0, -1, err
	}
	defer stage.close()
	m.started = started
	pid, pidfd, err = cloneChild(p, m, files, opt)
	runtime.KeepAlive(files)
	return pid, pidfd, err
}

// cloneChild makes the child, in a pid namespace of files if the program says so.
func cloneChild(p *Program, m *machine, files []*os.File, opt *ForkOptions) (pid, pidfd int, err error) {
	m.clone.flags = p.clone | unix.CLONE_PIDFD | unix.CLONE_SETTLS | unix.CLONE_CLEAR_SIGHAND
	if p.cgroup >= 0 {
		m.clone.flags |= unix.CLONE_INTO_CGROUP
		m.clone.cgroup = uint64(files[p.cgroup].Fd())
	}
	if p.pidns < 0 {
		var errno syscall.Errno
		pid, errno = rawClone(m)
		if errno != 0 {
			return 0, -1, errno
		}
		return pid, int(m.pidfd), nil
	}
	err = inPidNamespace(int(files[p.pidns].Fd()), opt.Forker, func() error {
		var errno syscall.Errno
		switch pid, errno = rawClone(m); errno {
		case 0:
			return nil
		case unix.ENOMEM: // is also what a namespace says whose first process is dying
			return fmt.Errorf("%w (the pid namespace may have ended: %w)", errno, os.ErrProcessDone)
		}
		return errno
	})
	return pid, int(m.pidfd), err
}

// inPidNamespace runs f while the children of this thread are born in the pid
// namespace ns, or that of the process whose pidfd it is. (Joining a pid namespace
// never moves the caller itself.)
func inPidNamespace(ns int, forker *Forker, f func() error) error {
	var own *os.File
	if forker != nil {
		own = forker.pidns
	} else {
		var err error
		if own, err = os.Open("/proc/self/ns/pid"); err != nil {
			return fmt.Errorf("open own pid namespace: %w", err)
		}
		defer own.Close()
	}
	// If it cannot come back, the thread stays locked, and so ends with this
	// goroutine.
	runtime.LockOSThread()
	if err := unix.Setns(ns, unix.CLONE_NEWPID); err != nil {
		runtime.UnlockOSThread()
		if err == unix.ESRCH { // of a pidfd
			return fmt.Errorf("join pid namespace: %w (%w)", err, os.ErrProcessDone)
		}
		return fmt.Errorf("join pid namespace: %w", err)
	}
	err := f()
	if unix.Setns(int(own.Fd()), unix.CLONE_NEWPID) == nil {
		runtime.UnlockOSThread()
	}
	return err
}

// rawClone forks. In the child it executes the machine and does not return.
//
// The child gets a copy of what memory it needs. To share all of it (CLONE_VM)
// is not to be had: with CLONE_VFORK a child that hangs in a dead network file
// system would hang the forker's scheduler, and without it the kernel kills
// everyone who shares the memory of a child that its cgroup's memory limit
// picks, the forker too.
func rawClone(m *machine) (int, syscall.Errno) {
	enterSyscall() // from here to its other end nothing may make the stack grow
	beforeFork()
	pid, errno := cloneStage(&m.clone, unsafe.Sizeof(m.clone), m)
	afterFork()
	exitSyscall()
	return int(pid), syscall.Errno(errno)
}

// cloneStage makes a child that executes m with a stack and thread-local
// storage of its own, and default actions for all signals that are not ignored.
//
//go:noescape
func cloneStage(args *cloneArgs, size uintptr, m *machine) (pid, errno uintptr)
