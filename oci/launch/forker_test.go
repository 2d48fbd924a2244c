package launch

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestForkerSignals: children of a process that ignores signals do not, whether it
// ignored them before or ignores them later.
func TestForkerSignals(t *testing.T) {
	needRoot(t)
	const internal = 33 // of the C library's, which Go leaves alone
	ignore := [4]uintptr{sigIgn}
	setAction := func(to *[4]uintptr) {
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, internal, uintptr(unsafe.Pointer(to)), 0, 8, 0, 0); errno != 0 {
			t.Fatal(errno)
		}
	}
	setAction(&ignore)
	defer setAction(new([4]uintptr))
	f, err := NewForker()
	if err != nil {
		t.Fatal(err)
	}
	signal.Ignore(unix.SIGUSR2)
	defer signal.Reset(unix.SIGUSR2)
	if want := signals(1<<(internal-1) | 1<<(unix.SIGUSR2-1)); f.ignored()&want != want {
		t.Errorf("ignored %#x, want %#x", f.ignored(), want)
	}
	spec := testSpec(rootfs(t), "")
	spec.Process.Args = []string{"grep", "^SigIgn", "/proc/self/status"}
	p, err := Compile(spec, Options{ID: "box"})
	if err != nil {
		t.Fatal(err)
	}
	out, _, err := executeWith(t, p, ForkOptions{Forker: f})
	if want := "SigIgn:\t0000000000000000\n"; err != nil || out != want {
		t.Errorf("%q, %v, want %q", out, err, want)
	}
}

// TestForkerKeepsNoSecrets: what one container's program contains is not in the
// memory that the next one's child gets.
func TestForkerKeepsNoSecrets(t *testing.T) {
	f, err := NewForker()
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.Repeat("secret", 1000)
	for _, env := range []string{secret, "A=1"} {
		spec := testSpec("/", "true")
		spec.Process.Env = []string{env}
		p, err := CompileExec(spec, spec.Process, ExecOptions{ID: "box", Pid: 1})
		if err != nil {
			t.Fatal(err)
		}
		_, s, err := f.newMachine(p, make([]*os.File, len(p.slots)), nil, 3, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !s.kept {
			t.Fatal("this test is about memory that is kept")
		}
		if has := bytes.Contains(f.stage, []byte("secret")); has != (env == secret) {
			t.Errorf("a secret is in the memory for a child with %.10q: %v", env, has)
		}
		s.close()
	}
}

// TestWaitingCloneHoldsNobody: while the kernel makes a clone wait, here for its
// arguments, other goroutines go on, even with one processor.
func TestWaitingCloneHoldsNobody(t *testing.T) {
	needRoot(t)
	const variable = "PODSTEAD_TEST_WAITING_CLONE"
	if os.Getenv(variable) == "" { // where nobody can go on, nobody can tell
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), variable+"=1", "GOMAXPROCS=1")
		out, err := cmd.CombinedOutput()
		if t.Logf("%s", out); err != nil {
			t.Error(err)
		}
		return
	}
	page, resolve := missingPage(t)
	done := make(chan error, 1)
	began := make(chan bool)
	go func() {
		runtime.LockOSThread() // as a clone into a pid namespace does
		defer runtime.UnlockOSThread()
		m := (*machine)(unsafe.Pointer(&page[0]))
		began <- true
		_, errno := rawClone(m)
		done <- errno
	}()
	<-began
	for range 1000 {
		runtime.Gosched()
	}
	select {
	case err := <-done:
		t.Fatal("the clone did not wait:", err)
	default:
	}
	resolve()
	if err := <-done; !errors.Is(err, unix.EINVAL) {
		t.Errorf("clone with a bad size of its stack: %v", err)
	}
}

// missingPage returns a page that whoever touches it waits for until resolve fills
// it, with what no clone accepts: see ioctl_userfaultfd(2).
func missingPage(t *testing.T) (page []byte, resolve func()) {
	size := os.Getpagesize()
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		t.Skip("userfaultfd:", errno)
	}
	t.Cleanup(func() { unix.Close(int(fd)) })
	page, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(page) })
	at := uint64(uintptr(unsafe.Pointer(&page[0])))
	control := func(request uintptr, arg unsafe.Pointer) {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg)); errno != 0 {
			t.Fatalf("userfaultfd %#x: %v", request, errno)
		}
	}
	const (
		api, register, fill = 0xc018aa3f, 0xc020aa00, 0xc028aa03
		version, missing    = 0xaa, 1
	)
	control(api, unsafe.Pointer(&[3]uint64{version}))
	control(register, unsafe.Pointer(&[4]uint64{at, uint64(size), missing}))
	return page, func() {
		with := make([]byte, size)
		bad := (*machine)(unsafe.Pointer(&with[0]))
		bad.clone.stackSize = 1 // and no stack
		control(fill, unsafe.Pointer(&[5]uint64{at, uint64(uintptr(unsafe.Pointer(&with[0]))), uint64(size)}))
		runtime.KeepAlive(with)
	}
}
