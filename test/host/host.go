// Package host gives a test binary a machine of its own: a network namespace
// with only lo, a private mount tree with an empty /run, a pid namespace whose
// end ends every process that a test left running, an IPC namespace, and a name
// for cgroups that are removed afterwards. Tests in it may make bridges, load firewall rules and
// start daemons; the machine underneath does not notice.
//
//	func TestMain(m *testing.M) { host.Main(m) }
//
//	func TestBridge(t *testing.T) {
//		host.Require(t)
//		…
//	}
//
// The host is made once per test binary, by running the binary again:
//
//	go test ─ outer process: clone(NEWNET|NEWNS|NEWPID|NEWIPC), afterwards removes cgroups
//	           └─ init, pid 1: mounts, lo up, reaps orphans, reports leftovers
//	               └─ the tests
//
// What is not private: files outside /run, /var/lib/cni and /etc/cni, the
// cgroup hierarchies, the kernel's global sysctls.
package host

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// stageVariable tells a process of the test binary which part it plays, and
// nameVariable how the host is called.
const (
	stageVariable = "PODSTEAD_TEST_HOST"
	nameVariable  = "PODSTEAD_TEST_HOST_NAME"
)

// Main runs the tests of m inside a host of their own and exits with their
// code. Without root it runs them as they are, and Require skips. Arguments
// that the test binary was started with, and its environment, stay the same.
func Main(m interface{ Run() int }) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	switch os.Getenv(stageVariable) {
	case "":
		os.Exit(outer())
	case "init":
		os.Exit(initMain())
	default:
		os.Exit(m.Run())
	}
}

// Inside tells whether this process runs in a host made by Main.
func Inside() bool { return os.Getenv(stageVariable) == "tests" }

// Require skips a test that needs a host of its own where there is none.
func Require(t testing.TB) {
	t.Helper()
	if !Inside() {
		t.Skip("needs root, for a private network, mount and pid namespace")
	}
}

// Name is unique to this host, for whatever must not collide between hosts on
// one machine. It begins with "podstead-test-".
func Name() string { return os.Getenv(nameVariable) }

// Cgroup is the path of a cgroup, below each hierarchy's root, that belongs to
// this host. Nobody has made it; it is removed when the host ends, with
// everything below it.
func Cgroup() string { return "/" + Name() }

// outer starts the init process of a new host, waits for it and cleans up what
// namespaces do not take with them.
func outer() int {
	// The parent-death signal follows the thread, so the thread must stay.
	runtime.LockOSThread()
	name := "podstead-test-" + strconv.Itoa(os.Getpid())
	cmd, err := again("init", name)
	if err != nil {
		return fail("", err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return fail("make a private host", err)
	}
	forward := make(chan os.Signal, 4)
	signal.Notify(forward, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT)
	go func() {
		for s := range forward {
			cmd.Process.Signal(s)
		}
	}()
	cmd.Wait()
	code := exitCode(cmd.ProcessState)
	if err := removeCgroups(name); err != nil && code == 0 {
		return fail("clean up", err)
	}
	return code
}

// again prepares another run of this test binary, as the given stage.
func again(stage, name string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageVariable+"="+stage, nameVariable+"="+name)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd, nil
}

func exitCode(s *os.ProcessState) int {
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return s.ExitCode()
}

func fail(what string, err error) int {
	if what != "" {
		err = fmt.Errorf("%s: %w", what, err)
	}
	fmt.Fprintln(os.Stderr, "test host:", err)
	return 1
}
