package launch

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/sys"
)

// start runs a container that lives until the test ends, and returns its pid.
func start(t testing.TB, p *Program) int {
	t.Helper()
	c := forkOnly(t, p)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer c.Pidfd.Close()
		unix.Kill(c.Pid, unix.SIGKILL)
		// The first process of a pid namespace ends after all others in it were
		// reaped, those that a failed test has forked into it included.
		const bound = 30_000 // ms
		poll := []unix.PollFd{{Fd: int32(c.Pidfd.Fd()), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, bound); n == 0 || err != nil && err != unix.EINTR {
			t.Errorf("process %d does not end: %v", c.Pid, err)
			return
		}
		unix.Wait4(c.Pid, nil, 0, nil)
	})
	return c.Pid
}

func TestExec(t *testing.T) {
	needRoot(t)
	spec := testSpec(rootfs(t), "exec sleep 1000")
	p, err := Compile(spec, Options{ID: "box"})
	if err != nil {
		t.Fatal(err)
	}
	pid := start(t, p)
	proc := *spec.Process
	proc.Args = []string{"sh", "-c", "hostname; ps | grep -c 'sleep 1000'; readlink /proc/self/ns/pid; ls /; exit 7"}
	x, err := CompileExec(spec, &proc, ExecOptions{ID: "box/1", Pid: pid})
	if err != nil {
		t.Fatal(err)
	}
	out, status, err := execute(t, x)
	if err != nil {
		t.Fatal(err)
	}
	if status.ExitStatus() != 7 || !strings.HasPrefix(out, "box\n") {
		t.Errorf("status %v, output %q", status, out)
	}
	t.Log(out)
}

// TestExecFindsTheProcessGoneEarlier has one that ends while it is opened, by its
// files one after another.
func TestExecFindsTheProcessGoneEarlier(t *testing.T) {
	needRoot(t)
	spec := testSpec(rootfs(t), "exec sleep 1000")
	pid := start(t, mustCompile(t, spec))
	x, err := CompileExec(spec, spec.Process, ExecOptions{ID: "box/1", Pid: pid})
	if err != nil {
		t.Fatal(err)
	}
	unix.Kill(pid, unix.SIGKILL)
	unix.Wait4(pid, nil, 0, nil)
	for _, s := range x.slots {
		if f, err := s.open(); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("%s: %v, %v", s.label, f, err)
			sys.CloseAll([]*os.File{f})
		}
	}
}

// TestExecFindsTheProcessGone has a process that ends after it was opened.
func TestExecFindsTheProcessGone(t *testing.T) {
	needRoot(t)
	spec := testSpec(rootfs(t), "exec sleep 1000")
	spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace })
	pid := start(t, mustCompile(t, spec))
	x, err := CompileExec(spec, spec.Process, ExecOptions{ID: "box/1", Pid: pid})
	if err != nil {
		t.Fatal(err)
	}
	files, err := x.Open()
	if err != nil {
		t.Fatal(err)
	}
	unix.Kill(pid, unix.SIGKILL)
	unix.Wait4(pid, nil, 0, nil)
	c, err := Fork(x, files, Stdio{})
	sys.CloseAll(files)
	if !errors.Is(err, os.ErrProcessDone) || !errors.Is(err, unix.ESRCH) {
		t.Errorf("got %v, %v", c, err)
	}
}
