package launch

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"podstead/oci/launch/internal/rlimit"
)

// The child of a fork of a multi-threaded Go process has one thread and a copy
// of memory in whatever state the other threads left it. Until it executes
// another image it may use nothing of the Go runtime: no allocation, no
// growing stack, no pointer written to the heap, no lock. Everything in this
// file runs there, and is therefore nosplit and works on what newMachine laid
// out beforehand.

// systemCall makes a system call. It is here, and not of package syscall, because
// the child has no page of the program's code yet: each that it comes to costs it
// as much as ten calls.
//
//go:noescape
func systemCall(nr, a, b, c, d, e, f uintptr) (result, errno uintptr)

// rawCall is systemCall as package syscall has it.
//
//go:nosplit
//go:norace
func rawCall(nr, a, b, c, d, e, f uintptr) (uintptr, syscall.Errno) {
	r, errno := systemCall(nr, a, b, c, d, e, f)
	return r, syscall.Errno(errno)
}

// rawOp is an op with its arguments resolved for execution.
type rawOp struct {
	nr              uintptr
	args            [6]uintptr
	regs            [6]uint16 // register to take the argument from, or noReg
	pass            [maxPass]uint16
	out             uint16
	skipOK, skipErr uint16
}

// machine is all that the child touches.
type machine struct {
	// Slices are for the forker; the child indexes by hand, because the code of
	// a failed bounds check takes more stack than there is. Program.check has
	// made sure of the bounds.
	ops      []rawOp
	first    *rawOp // of ops
	count    int
	started  bool       // do not wait for the start
	prologue int        // how many of ops come before the program's own
	args     [6]uintptr // of the op that is executed; here and not on the stack, which is small
	regs     []uintptr
	reg0     *uintptr  // of regs
	sync     uintptr   // socket to the forker
	listen   uintptr   // socket to accept the starter's connection from, or noListener
	extra    uintptr   // descriptors from 3 on that the container gets
	path     *makePath // nil if the program makes no paths
	copyUp   *copyUp   // nil if the program does not copy
	msg      message
	in       [8]byte
	nofile   rlimit.Limit
	sigset   [8]byte  // empty
	ignored  signals  // by the forker
	sigact   [40]byte // default action
	// For the fork of a sibling, and for sending descriptors.
	clone   cloneArgs
	pidfd   int32
	iov     [2]uintptr
	control [unsafe.Sizeof(uintptr(0))*2 + 8]byte // cmsghdr and one descriptor
	hdr     msghdr
}

// message is what a child tells its forker.
type message struct {
	Kind  uint32
	Op    uint32 // index into the program's operations
	Value uint32 // errno, Point or descriptor
}

// The messages, in the order in which they can come:
//
//	child → forker   forked     a sibling goes on when it is let on; with its pidfd
//	forker → child   (1 byte)   it is known, and its id maps, if any, are written
//	child → forker   warning    a step was passed over
//	child → forker   console    with the master of the pty
//	child → forker   point      waits for what is to be done from outside
//	forker → child   (1 byte)   go on (there may be another point after the start)
//	child → forker   prepared   waits for its start
//	forker → child   (1 byte)   start
//	child → forker   executing  only execve is left
//	child → forker   listener   with the number of the seccomp listener
//	forker → child   (1 byte)   it was taken; these two may come before "executing"
//	child → forker   end        the socket is closed by a successful execve
//	child → forker   failed     at any time: step and errno; the child exits with 128
const (
	msgForked = iota + 1
	msgWarning
	msgConsole
	msgPrepared
	msgExecuting
	msgFailed
	msgPoint
	msgListener
)

const messageSize = unsafe.Sizeof(message{})

// openTries bounds how often a lookup that the kernel broke off is begun anew,
// see sys.Openat2.
const openTries = 1000

// exitFailed is the exit status of a child whose launch failed.
const exitFailed = 128

type cloneArgs struct {
	flags, pidfd, childTid, parentTid, exitSignal, stack, stackSize, tls, setTid, setTidSize, cgroup uint64
}

type msghdr struct {
	name       uintptr
	namelen    uint64
	iov        uintptr
	iovlen     uint64
	control    uintptr
	controllen uint64
	flags      uint64
}

// runMachine is the child's first function: it executes the operations, and does
// not return.
//
//go:nosplit
//go:norace
//go:nocheckptr
func runMachine(m *machine) {
	for pc := 0; pc < m.count; pc++ {
		o := (*rawOp)(unsafe.Add(unsafe.Pointer(m.first), uintptr(pc)*unsafe.Sizeof(rawOp{})))
		a := &m.args
		for i := range a {
			a[i] = o.args[i]
			if o.regs[i] != noReg {
				a[i] = *m.reg(o.regs[i])
			}
		}
		var ret uintptr
		errno := syscall.EINTR
		for n := 0; errno == syscall.EINTR || errno == syscall.EAGAIN && o.nr == unix.SYS_OPENAT2 && n < openTries; n++ {
			switch {
			case o.nr == nrCopyUp: // these from here, because they need the most stack
				errno = m.copyUp.run(a[0], a[1], a[2])
			case o.nr == nrMakePath:
				ret, errno = m.makePath(a[0], a[1], a[2], a[3])
			case o.nr >= nrFirstOwn:
				ret, errno = m.own(pc, o.nr, a)
			default:
				ret, errno = rawCall(o.nr, a[0], a[1], a[2], a[3], a[4], a[5])
			}
		}
		if errno == 0 {
			if o.out != noReg {
				*m.reg(o.out) = ret
			}
			pc += int(o.skipOK)
			continue
		}
		if !o.passes(errno) {
			m.tell(msgFailed, pc, uint32(errno))
			m.exit(exitFailed)
		}
		pc += int(o.skipErr)
	}
	m.exit(exitFailed)
}

//go:nosplit
//go:norace
//go:nocheckptr
func (m *machine) reg(n uint16) *uintptr {
	return (*uintptr)(unsafe.Add(unsafe.Pointer(m.reg0), uintptr(n)*unsafe.Sizeof(uintptr(0))))
}

//go:nosplit
//go:norace
func (o *rawOp) passes(errno syscall.Errno) bool {
	for _, p := range o.pass {
		if p == uint16(anyErrno) || p != 0 && p == uint16(errno) {
			return true
		}
	}
	return false
}

// own executes the executor's own operations.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (m *machine) own(pc int, nr uintptr, a *[6]uintptr) (uintptr, syscall.Errno) {
	switch { // not by a table, which would be on a page of its own
	case nr == nrWaitMaps:
		m.wait()
	case nr == nrPrepared:
		if m.started {
			break
		}
		m.tell(msgPrepared, pc, 0)
		m.accept()
		m.wait()
	case nr == nrPoint:
		m.tell(msgPoint, pc, uint32(a[0]))
		m.wait()
	case nr == nrFork:
		return 0, m.fork(pc, a[0])
	case nr == nrTest:
		if *(*uint64)(ptr(a[0]))&uint64(a[1]) != uint64(a[2]) {
			return 0, syscall.Errno(a[3])
		}
	case nr == nrTestReg:
		if a[0] != a[1] {
			return 0, syscall.Errno(a[2])
		}
	case nr == nrSet:
		return a[0], 0
	case nr == nrStore:
		*(*uint64)(ptr(a[0])) = uint64(a[1])
	case nr == nrLimitCaps:
		limitCaps((*[6]uint32)(ptr(a[0])), (*[6]uint32)(ptr(a[1])))
	case nr == nrDropBounding:
		return 0, dropBounding(a[0])
	case nr == nrFail:
		return 0, syscall.Errno(a[0])
	case nr == nrWarn:
		m.tell(msgWarning, pc, 0)
	case nr == nrSignals:
		m.resetSignals()
	case nr == nrCloseAll:
		return 0, m.closeAll(a[0])
	case nr == nrFileLimit:
		_, e := rawCall(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(&m.nofile)), 0, 0, 0)
		return 0, e
	case nr == nrConsole:
		return 0, m.tellWithFd(msgConsole, pc, 0, int32(a[0]))
	case nr == nrListener:
		// The filter may refuse it.
		if e := m.tell(msgListener, pc, uint32(a[0])); e != 0 {
			return 0, e
		}
		m.wait()
	case nr == nrExecuting:
		m.tell(msgExecuting, pc, 0)
	default:
		return 0, syscall.ENOSYS
	}
	return 0, 0
}

// ptr makes a pointer of an address that newMachine took.
//
//go:nosplit
//go:norace
//go:nocheckptr
func ptr(address uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&address)) }

// limitCaps reduces a capset (effective, permitted, inheritable; twice) to
// what have permits.
//
//go:nosplit
//go:norace
func limitCaps(want, have *[6]uint32) {
	for word := 0; word < 2; word++ {
		for set := 0; set < 3; set++ {
			want[3*word+set] &= have[3*word+1]
		}
	}
}

// dropBounding drops a set of capabilities, as far as the kernel has them.
//
//go:nosplit
//go:norace
func dropBounding(set uintptr) syscall.Errno {
	for n := uintptr(0); set != 0; n, set = n+1, set>>1 {
		if set&1 == 0 {
			continue
		}
		_, e := rawCall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, n, 0, 0, 0, 0)
		if e != 0 && e != syscall.EINVAL {
			return e
		}
	}
	return 0
}

// wait waits for a byte of the forker. If the forker is gone instead, so is
// the reason to live.
//
//go:nosplit
//go:norace
func (m *machine) wait() {
	for {
		n, e := rawCall(unix.SYS_READ, m.sync, uintptr(unsafe.Pointer(&m.in)), 1, 0, 0, 0)
		if e == syscall.EINTR {
			continue
		}
		if e != 0 || n != 1 {
			m.exit(exitFailed)
		}
		return
	}
}

//go:nosplit
//go:norace
func (m *machine) tell(kind uint32, pc int, value uint32) syscall.Errno {
	m.msg.Kind, m.msg.Op, m.msg.Value = kind, uint32(pc-m.prologue), value
	for {
		_, e := rawCall(unix.SYS_WRITE, m.sync, uintptr(unsafe.Pointer(&m.msg)), messageSize, 0, 0, 0)
		if e != syscall.EINTR {
			return e
		}
	}
}

//go:nosplit
//go:norace
//go:nocheckptr
func (m *machine) tellWithFd(kind uint32, pc int, value uint32, fd int32) syscall.Errno {
	m.msg.Kind, m.msg.Op, m.msg.Value = kind, uint32(pc-m.prologue), value
	*(*int32)(unsafe.Pointer(&m.control[16])) = fd
	for {
		_, e := rawCall(unix.SYS_SENDMSG, m.sync, uintptr(unsafe.Pointer(&m.hdr)), unix.MSG_NOSIGNAL, 0, 0, 0)
		if e != syscall.EINTR {
			return e
		}
	}
}

// fork goes on in a new child of the forker, in namespaces that are made once
// this process is in others already; this process ends.
//
//go:nosplit
//go:norace
func (m *machine) fork(pc int, namespaces uintptr) syscall.Errno {
	m.clone.flags = uint64(namespaces) | unix.CLONE_PARENT | unix.CLONE_PIDFD
	m.clone.exitSignal = 0 // that of this process, as CLONE_PARENT wants it
	// It goes on where this one is.
	m.clone.stack, m.clone.stackSize, m.clone.cgroup = 0, 0, 0
	pid, e := rawCall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&m.clone)), unsafe.Sizeof(m.clone), 0, 0, 0, 0)
	if e != 0 {
		return e
	}
	if pid == 0 {
		// The forker has to know of this process before it says anything. One with
		// a new user namespace waits for its maps next.
		if namespaces&unix.CLONE_NEWUSER == 0 {
			m.wait()
		}
		return 0
	}
	if e := m.tellWithFd(msgForked, pc, 0, m.pidfd); e != 0 {
		m.exit(exitFailed)
	}
	m.exit(0)
	return 0
}

// resetSignals gives the container the signal state of a fresh process; an
// ignored signal would otherwise stay ignored through execve. Those that were
// caught have their default action since the clone.
//
//go:nosplit
//go:norace
func (m *machine) resetSignals() {
	for sig, set := uintptr(1), m.ignored; set != 0; sig, set = sig+1, set>>1 {
		if set&1 == 0 {
			continue
		}
		rawCall(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&m.sigact)), 0, 8, 0, 0)
	}
	rawCall(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&m.sigset)), 0, 8, 0, 0)
}

// accept turns from the forker, which may be gone when the time comes, to
// whoever connects to start this process.
//
//go:nosplit
//go:norace
func (m *machine) accept() {
	if m.listen == noListener {
		return
	}
	for {
		fd, e := rawCall(unix.SYS_ACCEPT4, m.listen, 0, 0, unix.SOCK_CLOEXEC, 0, 0)
		if e == syscall.EINTR {
			continue
		}
		if e != 0 {
			m.exit(exitFailed)
		}
		rawCall(unix.SYS_CLOSE, m.listen, 0, 0, 0, 0, 0)
		rawCall(unix.SYS_CLOSE, m.sync, 0, 0, 0, 0, 0)
		m.sync = fd
		return
	}
}

// closeAll closes what neither the container gets nor this executor needs.
//
//go:nosplit
//go:norace
func (m *machine) closeAll(keep uintptr) syscall.Errno {
	kept := [3]uintptr{m.sync, m.listen, keep}
	for next := 3 + m.extra; ; {
		// The nearest one that is kept, at or above next.
		stop := uintptr(1 << 32)
		for _, fd := range kept {
			if fd >= next && fd < stop {
				stop = fd
			}
		}
		if next < stop {
			_, e := rawCall(unix.SYS_CLOSE_RANGE, next, stop-1, 0, 0, 0, 0)
			if e != 0 {
				return e
			}
		}
		if stop == 1<<32 {
			return 0
		}
		next = stop + 1
	}
}

//go:nosplit
//go:norace
func (m *machine) exit(code uintptr) {
	for {
		rawCall(unix.SYS_EXIT_GROUP, code, 0, 0, 0, 0, 0)
	}
}
