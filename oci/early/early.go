//go:build linux && (amd64 || arm64)

// Package early has podstead-oci execute itself anew from a read-only mount at the
// first moment that a Go program has, when there is a command to come that forks
// processes into containers. It is what sys.ReadOnlySelf does, and must be done, a
// millisecond later, when all packages are initialised and their work is thrown
// away. What goes wrong here, and what is not simple, is left to that.
//
// It is early for the reason that oci/launch/internal/rlimit tells: it imports
// nothing. Who imports it has to be a program whose arguments are those of
// podstead-oci.
package early

import "unsafe"

// OneProcessor is what $GOMAXPROCS is for the program that is executed here,
// unless it was set: a program that lives for milliseconds does not make up for
// the start of threads, and Go's runtime does not read its control group's limits
// then. Main has to unset it, for what it starts may inherit it; nobody else writes it so.
const OneProcessor = "01"

var _ = start()

//go:linkname syscall6 syscall.RawSyscall6
func syscall6(nr, a, b, c, d, e, f uintptr) (r1, r2, errno uintptr)

const (
	atFdcwd       = ^uintptr(99) // -100
	readOnly      = 1            // ST_RDONLY, MOUNT_ATTR_RDONLY
	closeOnExec   = 0o2000000    // O_CLOEXEC, OPEN_TREE_CLOEXEC
	openTreeClone = 1
	atEmptyPath   = 0x1000
	private       = 1 << 18 // MS_PRIVATE
	pathMax       = 4096

	sysOpenTree     = 428
	sysMountSetattr = 442
)

const self = "/proc/self/exe\x00"

// start does not return if it can be done.
func start() bool {
	args := read("/proc/self/cmdline\x00")
	if !forks(args) {
		return false
	}
	exe := readOnlyExe()
	if exe == nil {
		return false
	}
	env := read("/proc/self/environ\x00")
	argv, envp := vector(args), vector(env)
	if !has(env, "GOMAXPROCS=") {
		envp[len(envp)-1] = unsafe.StringData("GOMAXPROCS=" + OneProcessor + "\x00")
		envp = append(envp, nil)
	}
	syscall6(sysExecve, address(&exe[0]), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envp[0])), 0, 0, 0)
	return false
}

// readOnlyExe is the path of this program below a detached read-only copy of its
// directory's mount; nil if it is on a read-only mount already, or if there is more
// to do.
func readOnlyExe() []byte {
	var fs [15]uint64 // struct statfs, f_flags of which is the eleventh
	if uid, _, _ := syscall6(sysGeteuid, 0, 0, 0, 0, 0, 0); uid != 0 {
		return nil
	}
	if _, _, e := syscall6(sysStatfs, text(self), uintptr(unsafe.Pointer(&fs)), 0, 0, 0, 0); e != 0 || fs[10]&readOnly != 0 {
		return nil
	}
	path := make([]byte, pathMax)
	n, _, e := syscall6(sysReadlinkat, atFdcwd, text(self), address(&path[0]), pathMax-1, 0, 0)
	if e != 0 {
		return nil
	}
	slash := int(n) - 1
	for slash > 0 && path[slash] != '/' {
		slash--
	}
	name := string(path[slash:n])
	path[max(slash, 1)] = 0
	tree, _, e := syscall6(sysOpenTree, atFdcwd, address(&path[0]), openTreeClone|closeOnExec, 0, 0, 0)
	if e != 0 {
		return nil
	}
	attr := [4]uint64{readOnly, 0, private, 0} // attr_set, attr_clr, propagation, userns_fd
	_, _, e = syscall6(sysMountSetattr, tree, text("\x00"), atEmptyPath, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	exe := []byte("/proc/self/fd/" + decimal(tree) + name + "\x00")
	if e != 0 || identity(&exe[0]) != identity(unsafe.StringData(self)) {
		syscall6(sysClose, tree, 0, 0, 0, 0, 0)
		return nil
	}
	return exe
}

// identity are device and inode of a file.
func identity(path *byte) [2]uint64 {
	var st [32]uint64 // struct stat, and more
	syscall6(sysNewfstatat, atFdcwd, address(path), uintptr(unsafe.Pointer(&st)), 0, 0, 0)
	return [2]uint64{st[0], st[1]}
}

// read returns what a file has.
func read(path string) []byte {
	fd, _, e := syscall6(sysOpenat, atFdcwd, text(path), closeOnExec, 0, 0, 0)
	if e != 0 {
		return nil
	}
	b := make([]byte, 0, 4096)
	for {
		if len(b) == cap(b) {
			b = append(make([]byte, 0, 4*cap(b)), b...)
		}
		n, _, e := syscall6(sysRead, fd, address(unsafe.SliceData(b[len(b):cap(b)])), uintptr(cap(b)-len(b)), 0, 0, 0)
		if e != 0 || n == 0 {
			break
		}
		b = b[:len(b)+int(n)]
	}
	syscall6(sysClose, fd, 0, 0, 0, 0, 0)
	return b
}

// forks tells whether one of the arguments is a command that forks processes into
// containers.
func forks(args []byte) bool {
	return each(args, func(arg []byte) bool {
		switch string(arg) {
		case "create", "run", "exec", "restore":
			return true
		}
		return false
	})
}

func has(env []byte, prefix string) bool {
	return each(env, func(v []byte) bool { return len(v) >= len(prefix) && string(v[:len(prefix)]) == prefix })
}

// vector are pointers to the strings of b, each of which ends with a zero, and nil.
func vector(b []byte) []*byte {
	list := make([]*byte, 0, 64)
	each(b, func(s []byte) bool {
		list = append(list, unsafe.SliceData(s))
		return false
	})
	return append(list, nil)
}

// each calls f with each string of b until it returns true.
func each(b []byte, f func([]byte) bool) bool {
	begin := 0
	for i, c := range b {
		if c != 0 {
			continue
		}
		if f(b[begin:i]) {
			return true
		}
		begin = i + 1
	}
	return false
}

func decimal(n uintptr) string {
	if n < 10 {
		return string([]byte{'0' + byte(n)})
	}
	return decimal(n/10) + decimal(n%10)
}

func address(b *byte) uintptr { return uintptr(unsafe.Pointer(b)) }

// text is the address of a string that ends with a zero.
func text(s string) uintptr { return uintptr(unsafe.Pointer(unsafe.StringData(s))) }
