package launch

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestChildHasNothingOfTheHeap: a child that waits for its start holds neither
// pages nor secrets of its forker.
func TestChildHasNothingOfTheHeap(t *testing.T) {
	needRoot(t)
	if hasRseq() {
		t.Skip("this thread has restartable sequences, as with cgo: children get all memory")
	}
	secret := bytes.Repeat([]byte("secret"), 1<<20)
	at := int64(uintptr(unsafe.Pointer(&secret[0])))
	read := func(pid int) error {
		f, err := os.Open(procFile(pid, "mem"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		_, err = f.ReadAt(make([]byte, 6), at)
		return err
	}
	if err := read(os.Getpid()); err != nil {
		t.Fatal("own memory:", err)
	}
	pid, end, err := Park()
	if err != nil {
		t.Fatal(err)
	}
	if err := read(pid); !errors.Is(err, unix.EIO) {
		t.Errorf("a child has memory of its forker at %#x: %v", at, err)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
}

// TestForkBesideCLibrary: the children of a thread of the C library, which has
// restartable sequences, have the memory that belongs to them.
func TestForkBesideCLibrary(t *testing.T) {
	needRoot(t)
	if hasRseq() {
		t.Skip("this is such a thread")
	}
	done := make(chan bool)
	go func() { // with a thread of its own, which ends with it
		defer close(done)
		runtime.LockOSThread()
		area, err := mapStage(os.Getpagesize())
		if err != nil {
			t.Error(err)
			return
		}
		if _, _, errno := unix.RawSyscall6(unix.SYS_RSEQ, uintptr(unsafe.Pointer(&area[0])), 32, 0, 0x53053053, 0, 0); errno != 0 {
			t.Error("rseq:", errno)
			return
		}
		if !hasRseq() {
			t.Error("this thread's registration is not seen")
		}
		for range 50 {
			_, end, err := Park()
			if err == nil {
				err = end()
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	}()
	<-done
}

// TestForksAtOnce: what one fork keeps from children may not be what another's
// child needs, nor a child of package os.
func TestForksAtOnce(t *testing.T) {
	needRoot(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 25 {
				_, end, err := Park()
				if err != nil {
					t.Error(err)
					return
				}
				if err := end(); err != nil {
					t.Error(err)
				}
				_ = bytes.Repeat([]byte("memory"), 1<<16) // the heap changes
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			for range 25 {
				if err := exec.Command(busybox, "true").Run(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
