package launch

import (
	"errors"
	"slices"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestEveryStepMayFail breaks one call of a launch after the other: each time the
// error names that step, and nothing is left, no descriptor, process or mount.
func TestEveryStepMayFail(t *testing.T) {
	needRoot(t)
	spec := testSpec(rootfs(t), "exit 0")
	spec.Process.User = specs.User{UID: 1, GID: 2}
	spec.Linux.Sysctl = map[string]string{"kernel.msgmax": "9000"}
	p := mustCompile(t, spec)
	files, mounts := openFiles(t), mountTable(t, spec.Root.Path)
	broken := 0
	for i := range p.ops {
		step := p.ops[i].text
		if step == "" || p.ops[i].call == cWarn {
			continue // tells one case from another, and cannot fail
		}
		w := *p
		w.ops = slices.Clone(p.ops)
		w.ops[i] = op{call: cFail, args: [6]arg{{argInt, uint64(syscall.EXDEV)}}, out: noReg, text: step}
		if err := w.check(); err != nil {
			t.Fatal(err)
		}
		_, _, err := execute(t, &w)
		if err == nil {
			continue // not in the way of this container
		}
		broken++
		var failed *StepError
		if !errors.As(err, &failed) || failed.Step != step || failed.Errno != syscall.EXDEV {
			t.Errorf("operation %d: %v, want %s", i, err, step)
		}
	}
	if broken < 100 {
		t.Errorf("only %d of %d steps failed", broken, len(p.ops))
	}
	if n := openFiles(t); n != files {
		t.Errorf("%d descriptors are open, there were %d", n, files)
	}
	if now := mountTable(t, spec.Root.Path); now != mounts {
		t.Errorf("mounts are left: %s", now)
	}
	if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != syscall.ECHILD {
		t.Errorf("process %d is left, %v", pid, err)
	}
}
