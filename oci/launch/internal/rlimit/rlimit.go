// Package rlimit remembers the limit of open files that the process was
// started with. Go's package os raises the soft limit to the hard one at its
// initialisation, and hides the original; a container must get the original.
//
// It works because of what the Go specification says of initialisation: of all
// packages whose imports are initialised, the one with the first import path
// goes first. This one needs only syscall, while os needs time, whose path
// sorts after "podstead": so this one is always earlier than os. It must
// therefore never import anything but syscall.
package rlimit

import "syscall"

var nofile = read()

func read() (l syscall.Rlimit) {
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) != nil {
		l = syscall.Rlimit{Cur: 1024, Max: 4096}
	}
	return l
}

// NoFile is RLIMIT_NOFILE as this process got it.
func NoFile() syscall.Rlimit { return nofile }
