package launch

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Opening a path inside a root, and making what is missing of it, cannot be
// laid out as a list of calls: an image may have links to what does not exist,
// such as /etc/resolv.conf, and what they lead to must be made instead. This
// runs in the child and is nosplit; see child_linux.go.

// makePath is the memory for it.
type makePath struct {
	root uintptr
	how  unix.OpenHow
	path pathBuffer
	link pathBuffer
}

type pathBuffer [unix.PathMax]byte

// at is a byte of the buffer. It is not checked for bounds: the code for a
// failed check would take more stack than there is.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (b *pathBuffer) at(i int) *byte { return (*byte)(unsafe.Add(unsafe.Pointer(b), i)) }

// maxLinks is how many dangling links are followed, as many as the kernel does.
const maxLinks = 40

// makePath opens path inside root and returns an O_PATH descriptor. What is
// missing is made: directories, and at the end what mode says, a directory or
// a file. The kernel resolves links; where one dangles, it is resolved here.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (m *machine) makePath(root, path, mode, resolve uintptr) (uintptr, syscall.Errno) {
	n := 0
	for ; ; n++ {
		if n == len(m.path.path) {
			return 0, syscall.ENAMETOOLONG
		}
		b := *(*byte)(ptr(path + uintptr(n)))
		*m.path.path.at(n) = b
		if b == 0 {
			break
		}
	}
	m.path.root, m.path.how.Resolve = root, uint64(resolve)
	for range maxLinks {
		fd, e := m.openMade(mode&unix.S_IFMT == unix.S_IFDIR)
		if e != syscall.ENOENT {
			return fd, e
		}
		fd, again, e := m.makeParts(mode)
		if !again || e != 0 {
			return fd, e
		}
	}
	return 0, syscall.ELOOP
}

// makeParts makes one part of the path after the other, from the descriptor
// of the one before. again says that a dangling link was replaced in the path
// by what it leads to.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (m *machine) makeParts(mode uintptr) (fd uintptr, again bool, e syscall.Errno) {
	p := m.path
	parent, start := p.root, 0
	for i := 0; i < len(p.path); i++ {
		c := *p.path.at(i)
		if c != '/' && c != 0 {
			continue
		}
		if i == start { // "//", or "/" at the end
			if c == 0 {
				return parent, false, 0
			}
			start++
			continue
		}
		*p.path.at(i) = 0
		fd, again, e = m.makePart(parent, start, mode, c == 0)
		*p.path.at(i) = c
		if again {
			return 0, true, m.followLink(start, i)
		}
		if e != 0 || c == 0 {
			return fd, false, e
		}
		parent, start = fd, i+1
	}
	return 0, false, syscall.ENAMETOOLONG
}

// makePart opens the path up to the part at start, and makes that part if it
// is missing. dangling says that it is a link to nothing, which is then in
// m.path.link.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (m *machine) makePart(parent uintptr, start int, mode uintptr, last bool) (fd uintptr, dangling bool, e syscall.Errno) {
	dir := !last || mode&unix.S_IFMT == unix.S_IFDIR
	if fd, e = m.openMade(dir); e != syscall.ENOENT {
		return fd, false, e
	}
	name := uintptr(unsafe.Pointer(m.path.path.at(start)))
	if dir {
		_, e = rawCall(unix.SYS_MKDIRAT, parent, name, 0o755, 0, 0, 0)
	} else {
		_, e = rawCall(unix.SYS_MKNODAT, parent, name, mode, 0, 0, 0)
	}
	if e != 0 && e != syscall.EEXIST {
		return 0, false, e
	}
	if fd, e = m.openMade(dir); e != syscall.ENOENT {
		return fd, false, e
	}
	n, e := rawCall(unix.SYS_READLINKAT, parent, name, uintptr(unsafe.Pointer(&m.path.link)), uintptr(len(m.path.link)-1), 0, 0)
	if e != 0 {
		return 0, false, e
	}
	*m.path.link.at(int(n)) = 0
	return 0, true, 0
}

// followLink replaces the part of the path from start to end by the link.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (m *machine) followLink(start, end int) syscall.Errno {
	p := m.path
	n := 0
	for *p.link.at(n) != 0 {
		n++
	}
	for i := end; ; i++ { // the rest of the path, its NUL included
		if n == len(p.link) {
			return syscall.ENAMETOOLONG
		}
		*p.link.at(n) = *p.path.at(i)
		if *p.path.at(i) == 0 {
			break
		}
		n++
	}
	if *p.link.at(0) == '/' {
		start = 0
	}
	for i := 0; ; i++ {
		if start+i == len(p.path) {
			return syscall.ENAMETOOLONG
		}
		*p.path.at(start + i) = *p.link.at(i)
		if *p.link.at(i) == 0 {
			return 0
		}
	}
}

//go:nosplit
//go:norace
//go:nocheckptr
func (m *machine) openMade(dir bool) (uintptr, syscall.Errno) {
	m.path.how.Flags = unix.O_PATH | unix.O_CLOEXEC
	if dir {
		m.path.how.Flags |= unix.O_DIRECTORY
	}
	for n := 0; ; n++ {
		fd, e := rawCall(unix.SYS_OPENAT2, m.path.root, uintptr(unsafe.Pointer(&m.path.path)), uintptr(unsafe.Pointer(&m.path.how)), unsafe.Sizeof(m.path.how), 0, 0)
		if n == openTries || e != syscall.EAGAIN {
			return fd, e
		}
	}
}
