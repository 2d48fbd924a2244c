package launch

import (
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Forker is what a process that forks often looks up, opens and maps once. It is
// safe for concurrent use.
type Forker struct {
	null  *os.File // /dev/null, for both ways
	pidns *os.File // the pid namespace that this process is in
	image image
	// For most programs, and how much of it was written to; what is guarded by
	// syscall.ForkLock.
	stage   []byte
	written uintptr
	never   signals                 // ignored, and Go does not know it
	spare   atomic.Pointer[Program] // nobody uses it any more, and the next one gets its memory
}

// keptStage is the size of the memory that a Forker keeps: enough for an exec, and
// for a container without a large seccomp filter.
const keptStage = 48 << 10

// NewForker prepares for forks. It is in use as long as the process lives.
func NewForker() (*Forker, error) {
	f := &Forker{image: ownImage(), never: ignoredNow(), written: stackSize}
	var err error
	if f.null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if f.pidns, err = os.Open("/proc/self/ns/pid"); err != nil {
		return nil, fmt.Errorf("open own pid namespace: %w", err)
	}
	f.stage, err = mapStage(keptStage)
	return f, err
}

// Null is /dev/null, open for both ways.
func (f *Forker) Null() *os.File { return f.null }

// Decode is Program.UnmarshalBinary. The program is the forker's: it is not valid any
// more when its child has been asked whether it has Ended.
func (f *Forker) Decode(b []byte) (*Program, error) {
	var p *Program
	if f != nil {
		p = f.spare.Swap(nil)
	}
	if p == nil {
		p = new(Program)
	}
	if err := p.UnmarshalBinary(b); err != nil {
		return nil, err
	}
	return p, nil
}

// done takes back a program of Decode, unless it is a large one.
func (f *Forker) done(p *Program) {
	const ops, data = 256, 16 << 10 // what an exec takes, several times
	if f != nil && cap(p.ops) <= ops && cap(p.data) <= data {
		f.spare.Store(p)
	}
}

// keepMemory is that of the image.
func (f *Forker) keepMemory() {
	if f == nil {
		ownImage().keepMemory()
		return
	}
	f.image.keepMemory()
}

// signals is a set: bit N-1 is signal N.
type signals uint64

const (
	sigIgn     = 1
	lastSignal = 64
)

// ignoredNow asks the kernel.
func ignoredNow() (s signals) {
	for n := 1; n <= lastSignal; n++ {
		var act [4]uintptr // handler, flags, restorer, mask
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(n), 0, uintptr(unsafe.Pointer(&act)), 8, 0, 0)
		if errno == 0 && act[0] == sigIgn {
			s |= 1 << (n - 1)
		}
	}
	return s
}

// ignored returns the signals that the process ignores now.
func (f *Forker) ignored() signals {
	if f == nil {
		return ignoredNow()
	}
	s := f.never
	for n := 1; n <= lastSignal; n++ {
		if signal.Ignored(syscall.Signal(n)) {
			s |= 1 << (n - 1)
		}
	}
	return s
}
