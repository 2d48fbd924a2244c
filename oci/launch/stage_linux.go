package launch

import (
	"debug/elf"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A stage is the memory that a child has: what newMachine lays out, the stack
// and the thread-local storage. It is outside the Go heap, which children do
// not get; see keepMemory.
type stage struct {
	mem  []byte
	used uintptr
	kept bool // by the forker
}

const (
	// stackSize is that of a child. The linker sees to it that functions that
	// may not grow their stack take less than 1 KiB together.
	stackSize = 6 << 10
	// tlsSize is room on either side of what the thread pointer points to, where
	// a prologue may look for its goroutine, and finds none.
	tlsSize = 128
	// headSize is where a stage's data begin.
	headSize = stackSize + 2*tlsSize
)

// newStage makes a stage with room for size bytes of data; the forker's own, if
// that is large enough. It is used up by the fork, before another one may begin.
func (f *Forker) newStage(size uintptr) (*stage, error) {
	size += headSize
	if f != nil && size <= uintptr(len(f.stage)) {
		clear(f.stage[stackSize:f.written]) // of another container's program
		f.written = size
		if err := unix.Madvise(f.stage, unix.MADV_DOFORK); err != nil {
			return nil, fmt.Errorf("memory for a child: %w", os.NewSyscallError("madvise", err))
		}
		return &stage{mem: f.stage, used: headSize, kept: true}, nil
	}
	mem, err := mapStage(int(size))
	if err != nil {
		return nil, err
	}
	return &stage{mem: mem, used: headSize}, nil
}

func mapStage(size int) ([]byte, error) {
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("memory for a child: %w", os.NewSyscallError("mmap", err))
	}
	return mem, nil
}

// close ends the forker's use of the stage; children have their copies.
func (s *stage) close() {
	if !s.kept {
		unix.Munmap(s.mem)
	}
}

// base is the address of the stack, the lowest.
func (s *stage) base() uintptr { return uintptr(unsafe.Pointer(&s.mem[0])) }

// thread is the thread pointer.
func (s *stage) thread() uintptr { return s.base() + stackSize + tlsSize }

// sizeOf is what n values take in a stage.
func sizeOf[T any](n int) uintptr {
	var v T
	return (uintptr(n)*unsafe.Sizeof(v) + 7) &^ 7
}

// place puts n values into a stage that was made large enough. They are zero,
// and may point into the stage only: nobody looks there for pointers to the heap.
func place[T any](s *stage, n int) []T {
	if n == 0 {
		return nil
	}
	at := s.used
	s.used += sizeOf[T](n)
	_ = s.mem[s.used-1]
	return unsafe.Slice((*T)(unsafe.Pointer(&s.mem[at])), n)
}

// keepMemory keeps the forker's memory from the children that it will have,
// all but the program's code and constants. They need nothing of it; and where
// no pages are shared, none have to be copied when either writes to them, which
// is most of what a fork of a Go process costs. Nor can a child that waits for its start
// be made to tell what the forker knows. It has to be said again at each fork,
// because the memory grows.
//
// A process that does so cannot fork by package os with a new user namespace:
// that child would need its heap. (Others share memory until execve.)
func (i image) keepMemory() {
	if i.end == 0 {
		return // forks cost more
	}
	unix.RawSyscallNoError(unix.SYS_MADVISE, 0, i.start, unix.MADV_DONTFORK)
	unix.RawSyscallNoError(unix.SYS_MADVISE, i.end, i.above-i.end, unix.MADV_DONTFORK)
}

// image is where the program's code and constants are, in whole pages, and an
// address above which there is only what the kernel has put there. It is zero if
// that cannot be told, or children need more than that.
type image struct{ start, end, above uintptr }

// ownImage asks getauxval(3) and elf(5).
func ownImage() image {
	if hasRseq() {
		return image{}
	}
	vector, err := unix.Auxv()
	if err != nil {
		return image{}
	}
	aux := map[uintptr]uintptr{}
	for _, v := range vector {
		aux[v[0]] = v[1]
	}
	const phdr, phent, phnum, pagesz, vdso = 3, 4, 5, 6, 33
	if aux[phdr] == 0 || aux[vdso] == 0 || aux[phent] != unsafe.Sizeof(elf.Prog64{}) {
		return image{}
	}
	headers := unsafe.Slice((*elf.Prog64)(ptr(aux[phdr])), aux[phnum])
	var offset uintptr // between addresses in the file and in memory
	start, end := ^uintptr(0), uintptr(0)
	for i := range headers {
		switch h := &headers[i]; elf.ProgType(h.Type) {
		case elf.PT_PHDR:
			offset = aux[phdr] - uintptr(h.Vaddr)
		case elf.PT_LOAD:
			if elf.ProgFlag(h.Flags)&elf.PF_W != 0 {
				continue // variables
			}
			start, end = min(start, uintptr(h.Vaddr)), max(end, uintptr(h.Vaddr+h.Memsz))
		}
	}
	page := aux[pagesz] - 1
	start, end = (start+offset)&^page, (end+offset+page)&^page
	if end >= aux[vdso] {
		return image{}
	}
	return image{start, end, aux[vdso]}
}

// hasRseq tells whether the thread has registered restartable sequences (rseq(2)), as
// the C library does for each of its own; a program that was built with cgo has
// them. Children inherit that, and the kernel kills one that does not have
// the memory where it notes the processor when one was taken from the child.
func hasRseq() bool {
	const size, unregister, signature = 32, 1, 0x53053053
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	area := new([2 * size]byte)
	at := (uintptr(unsafe.Pointer(area)) + size - 1) &^ (size - 1) // it is to be aligned
	register := func(flags uintptr) syscall.Errno {
		_, _, errno := unix.RawSyscall6(unix.SYS_RSEQ, at, size, flags, signature, 0, 0)
		return errno
	}
	errno := register(0)
	if errno == 0 {
		register(unregister)
	}
	runtime.KeepAlive(area)
	return errno != 0 && errno != unix.ENOSYS
}
