//go:build linux && (amd64 || arm64)

// Package rlimit remembers the limit of open files that the process was
// started with. Go's package syscall raises the soft limit to the hard one at
// its initialisation, and hides the original; a container must get the
// original.
//
// It works because of what the Go specification says of initialisation: of all
// packages whose imports are initialised, the one with the first import path
// goes first. This one imports nothing, while syscall needs sync, whose path
// sorts after "podstead": so this one is always earlier. It must therefore
// never import anything, and has the linker give it syscall's own way to the
// kernel, which needs no initialisation.
package rlimit

import "unsafe"

// Limit is a resource limit as the kernel has it.
type Limit struct{ Soft, Hard uint64 }

const noFile = 7 // RLIMIT_NOFILE

var nofile = read()

//go:linkname syscall6 syscall.RawSyscall6
func syscall6(nr, a, b, c, d, e, f uintptr) (r1, r2, errno uintptr)

func read() (l Limit) {
	if _, _, errno := syscall6(sysPrlimit64, 0, noFile, 0, uintptr(unsafe.Pointer(&l)), 0, 0); errno != 0 {
		return Limit{1024, 4096}
	}
	return l
}

// NoFile is RLIMIT_NOFILE as this process got it.
func NoFile() Limit { return nofile }
