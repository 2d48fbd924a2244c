package launch

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Copying what an image has at the mount point of a tmpfs into that tmpfs
// (tmpcopyup). It runs in the child, so that the memory is the container's and
// the privilege no more than its root has, and is nosplit; see child_linux.go.
//
// The tree is the image's and may be changed while it is copied. It is read
// through a mount of its own that is read-only and without devices, links and
// submounts, name by name, from directories that stay open: nothing leads out
// of it, and to open what turns out to be a device fails.

// copyUp is the memory for it.
type copyUp struct {
	depth  int
	levels [maxCopyDepth]copyLevel
	stat   unix.Statx_t
	times  [2]unix.Timespec
	empty  [1]byte // the path ""
	here   [2]byte // the path "."
	link   pathBuffer
	// The regular file that is being copied, and where.
	opened   bool
	from, to uintptr
	offset   int64
	names    [8192]byte // directory entries
}

// copyLevel is a directory that is being copied.
type copyLevel struct {
	from, to uintptr
	next     uintptr // position of the entry to go on with
}

// maxCopyDepth is how many directories may be in each other; each takes two
// descriptors.
const maxCopyDepth = 128

// What the root of the copy takes over from the original.
const (
	copyOwner = 1 << iota
	copyMode
)

const (
	readDir  = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	readFile = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	makeFile = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
)

// Fields of struct linux_dirent64.
const (
	direntOff    = 8
	direntReclen = 16
	direntName   = 19
)

// retry makes a system call again if a signal interrupted it: here it cannot be
// left to the caller, who would begin anew.
//
//go:nosplit
//go:norace
func retry(nr, a, b, c, d, e uintptr) (uintptr, syscall.Errno) {
	for {
		r, errno := rawCall(nr, a, b, c, d, e, 0)
		if errno != syscall.EINTR {
			return r, errno
		}
	}
}

// run copies what is in the directory from into the directory to. Devices and
// sockets are left out.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (c *copyUp) run(from, to, root uintptr) syscall.Errno {
	c.depth, c.opened, c.here[0] = 0, false, '.'
	if e := c.enter(from, to, uintptr(unsafe.Pointer(&c.here))); e != 0 {
		return e
	}
	for c.depth > 0 {
		l := c.level(c.depth - 1)
		if _, e := retry(unix.SYS_LSEEK, l.from, l.next, unix.SEEK_SET, 0, 0); e != 0 {
			return e
		}
		n, e := retry(unix.SYS_GETDENTS64, l.from, uintptr(unsafe.Pointer(&c.names)), uintptr(len(c.names)), 0, 0)
		if e != 0 {
			return e
		}
		if n == 0 {
			e = c.leave(l, root)
		}
		// Up to the first directory, which is entered.
		for at := uintptr(0); at < n && e == 0 && l == c.level(c.depth-1); {
			d := unsafe.Add(unsafe.Pointer(&c.names), at)
			at += uintptr(*(*uint16)(unsafe.Add(d, direntReclen)))
			l.next = uintptr(*(*uint64)(unsafe.Add(d, direntOff)))
			if name := unsafe.Add(d, direntName); !isDots(name) {
				e = c.entry(l, uintptr(name))
			}
			if c.opened && e == 0 {
				e = c.content()
			}
		}
		if e != 0 {
			return e
		}
	}
	return 0
}

//go:nosplit
//go:norace
//go:nocheckptr
func (c *copyUp) level(i int) *copyLevel {
	return (*copyLevel)(unsafe.Add(unsafe.Pointer(&c.levels), uintptr(i)*unsafe.Sizeof(copyLevel{})))
}

// enter goes on in the directories called name.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (c *copyUp) enter(from, to, name uintptr) syscall.Errno {
	if c.depth == maxCopyDepth {
		return syscall.ENAMETOOLONG
	}
	l := c.level(c.depth)
	var e syscall.Errno
	if l.from, e = retry(unix.SYS_OPENAT, from, name, readDir, 0, 0); e != 0 {
		return e
	}
	if l.to, e = retry(unix.SYS_OPENAT, to, name, readDir, 0, 0); e != 0 {
		return e
	}
	l.next = 0
	c.depth++
	return 0
}

// leave completes the directory that was entered last.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (c *copyUp) leave(l *copyLevel, root uintptr) syscall.Errno {
	what := uintptr(copyOwner | copyMode)
	if c.depth == 1 {
		what = root
	}
	if e := c.inspect(l.from, uintptr(unsafe.Pointer(&c.empty)), unix.AT_EMPTY_PATH); e != 0 {
		return e
	}
	if e := c.takeOver(l.to, what); e != 0 {
		return e
	}
	retry(unix.SYS_CLOSE, l.from, 0, 0, 0, 0)
	retry(unix.SYS_CLOSE, l.to, 0, 0, 0, 0)
	c.depth--
	return 0
}

// isDots tells whether a name is "." or "..".
//
//go:nosplit
//go:norace
//go:nocheckptr
func isDots(name unsafe.Pointer) bool {
	b := (*[3]byte)(name)
	return b[0] == '.' && (b[1] == 0 || b[1] == '.' && b[2] == 0)
}

//go:nosplit
//go:norace
//go:nocheckptr
func (c *copyUp) entry(l *copyLevel, name uintptr) syscall.Errno {
	e := c.inspect(l.from, name, unix.AT_SYMLINK_NOFOLLOW)
	if e == syscall.ENOENT {
		return 0 // removed meanwhile
	}
	if e != 0 {
		return e
	}
	switch c.stat.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if _, e := retry(unix.SYS_MKDIRAT, l.to, name, 0o700, 0, 0); e != 0 {
			return e
		}
		return c.enter(l.from, l.to, name)
	case unix.S_IFREG:
		return c.open(l, name)
	case unix.S_IFLNK:
		n, e := retry(unix.SYS_READLINKAT, l.from, name, uintptr(unsafe.Pointer(&c.link)), uintptr(len(c.link)-1), 0)
		if e != 0 {
			return e
		}
		*c.link.at(int(n)) = 0
		if _, e = retry(unix.SYS_SYMLINKAT, uintptr(unsafe.Pointer(&c.link)), l.to, name, 0, 0); e != 0 {
			return e
		}
	case unix.S_IFIFO:
		if _, e := retry(unix.SYS_MKNODAT, l.to, name, uintptr(c.stat.Mode), 0, 0); e != 0 {
			return e
		}
	default:
		return 0
	}
	// What cannot be opened gets its owner and times by name.
	if e = c.chown(l.to, name, unix.AT_SYMLINK_NOFOLLOW); e != 0 {
		return e
	}
	return c.date(l.to, name, unix.AT_SYMLINK_NOFOLLOW)
}

// open opens a regular file and its copy for content. What has become something
// else since it was inspected ends the copy.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (c *copyUp) open(l *copyLevel, name uintptr) (e syscall.Errno) {
	if c.from, e = retry(unix.SYS_OPENAT, l.from, name, readFile, 0, 0); e != 0 {
		return e
	}
	if e = c.inspect(c.from, uintptr(unsafe.Pointer(&c.empty)), unix.AT_EMPTY_PATH); e != 0 {
		return e
	}
	if c.stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return syscall.ESTALE
	}
	c.to, e = retry(unix.SYS_OPENAT, l.to, name, makeFile, 0o600, 0)
	c.opened = true
	return e
}

// content fills the copy that was opened. It is not called by open to leave
// enough of the stack.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (c *copyUp) content() syscall.Errno {
	c.opened = false
	if e := c.data(c.from, c.to); e != 0 {
		return e
	}
	if e := c.takeOver(c.to, copyOwner|copyMode); e != 0 {
		return e
	}
	retry(unix.SYS_CLOSE, c.from, 0, 0, 0, 0)
	retry(unix.SYS_CLOSE, c.to, 0, 0, 0, 0)
	return 0
}

// data copies content. Holes stay holes: a file may seem larger than all memory.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (c *copyUp) data(from, to uintptr) syscall.Errno {
	size := uintptr(c.stat.Size)
	if _, e := retry(unix.SYS_FTRUNCATE, to, size, 0, 0, 0); e != 0 {
		return e
	}
	for at := uintptr(0); at < size; {
		n, e := retry(unix.SYS_LSEEK, from, at, unix.SEEK_DATA, 0, 0)
		if e == syscall.ENXIO {
			return 0 // a hole up to the end
		}
		if e != 0 {
			return e
		}
		at = n
		if n, e = retry(unix.SYS_LSEEK, from, at, unix.SEEK_HOLE, 0, 0); e != 0 {
			return e
		}
		// sendfile is told where to read, and writes at the position.
		c.offset = int64(at)
		if _, e = retry(unix.SYS_LSEEK, to, at, unix.SEEK_SET, 0, 0); e != 0 {
			return e
		}
		n, e = retry(unix.SYS_SENDFILE, to, from, uintptr(unsafe.Pointer(&c.offset)), min(n, size)-at, 0)
		if e != 0 || n == 0 { // 0: it has become shorter
			return e
		}
		at += n
	}
	return 0
}

// inspect fills c.stat.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (c *copyUp) inspect(dir, name, flags uintptr) syscall.Errno {
	_, e := retry(unix.SYS_STATX, dir, name, flags, unix.STATX_BASIC_STATS, uintptr(unsafe.Pointer(&c.stat)))
	return e
}

// takeOver gives an open copy the owner, mode and times in c.stat.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (c *copyUp) takeOver(fd, what uintptr) syscall.Errno {
	if what&copyOwner != 0 {
		if e := c.chown(fd, uintptr(unsafe.Pointer(&c.empty)), unix.AT_EMPTY_PATH); e != 0 {
			return e
		}
	}
	if what&copyMode != 0 {
		if _, e := retry(unix.SYS_FCHMOD, fd, uintptr(c.stat.Mode&0o7777), 0, 0, 0); e != 0 {
			return e
		}
	}
	return c.date(fd, 0, 0)
}

// date gives a copy its times. The name 0 stands for the open file itself.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (c *copyUp) date(dir, name, flags uintptr) syscall.Errno {
	c.times[0] = unix.Timespec{Sec: c.stat.Atime.Sec, Nsec: int64(c.stat.Atime.Nsec)}
	c.times[1] = unix.Timespec{Sec: c.stat.Mtime.Sec, Nsec: int64(c.stat.Mtime.Nsec)}
	_, e := retry(unix.SYS_UTIMENSAT, dir, name, uintptr(unsafe.Pointer(&c.times)), flags, 0)
	return e
}

// chown gives a copy its owner. One that the user namespace does not have stays
// its root, which must not lend itself to whoever executes the file.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (c *copyUp) chown(dir, name, flags uintptr) syscall.Errno {
	_, e := retry(unix.SYS_FCHOWNAT, dir, name, uintptr(c.stat.Uid), uintptr(c.stat.Gid), flags)
	if e == syscall.EINVAL {
		c.stat.Mode &^= unix.S_ISUID | unix.S_ISGID
		return 0
	}
	return e
}
