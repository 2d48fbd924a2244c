package network

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// inside says that the process runs in namespaces of its own: it is "the host"
// of these tests.
const inside = "PODSTEAD_NETWORK_TEST_INSIDE"

// TestMain runs the tests in a network and a mount namespace of their own, so
// that bridges, tables and sysctls are nobody else's.
func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" || os.Getuid() != 0 {
		os.Exit(runTests(m))
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = inherited()
	// A test run that is ended from outside ends there, too. The signal goes by
	// the thread that started it, which must therefore not end before.
	runtime.LockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			os.Exit(exit.ExitCode())
		}
		fmt.Fprintln(os.Stderr, "run tests in namespaces:", err)
		os.Exit(1)
	}
}

// inherited passes on what the go command's fuzzer talks over.
func inherited() (files []*os.File) {
	for fd := 3; fd <= 5; fd++ {
		var st syscall.Stat_t
		if syscall.Fstat(fd, &st) != nil || st.Mode&syscall.S_IFMT != syscall.S_IFIFO && st.Mode&syscall.S_IFMT != syscall.S_IFREG {
			break
		}
		files = append(files, os.NewFile(uintptr(fd), "inherited"))
	}
	return files
}

func runTests(m *testing.M) int {
	if os.Getenv(victim) != "" {
		return runVictim()
	}
	if os.Getenv(inside) != "" {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "set lo up:", err)
			return 1
		}
	}
	return m.Run()
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("needs root: makes network namespaces")
	}
}
