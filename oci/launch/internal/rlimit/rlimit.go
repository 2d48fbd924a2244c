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
// never import anything, and asks the kernel by a few lines of assembly.
package rlimit

// Limit is a resource limit as the kernel has it.
type Limit struct{ Soft, Hard uint64 }

const noFile = 7 // RLIMIT_NOFILE

var nofile = read()

// prlimit64 reads a limit of this process; it returns a negative errno.
//
//go:noescape
func prlimit64(resource uintptr, old *Limit) (errno uintptr)

func read() (l Limit) {
	if prlimit64(noFile, &l) != 0 {
		return Limit{1024, 4096}
	}
	return l
}

// NoFile is RLIMIT_NOFILE as this process got it.
func NoFile() Limit { return nofile }
