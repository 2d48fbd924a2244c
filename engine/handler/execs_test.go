package handler

import (
	"errors"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/oci/launch"
)

// TestExecs: a program is compiled anew if anything is another than before, or if
// others came in between.
func TestExecs(t *testing.T) {
	spec := &specs.Spec{Version: "1", Linux: &specs.Linux{}}
	compiled := 0
	args := []string{"true"}
	failing := errors.New("no")
	var err error
	compile := func() (*launch.Program, error) {
		compiled++
		if err != nil {
			return nil, err
		}
		return launch.CompileExec(spec, &specs.Process{Args: args, Cwd: "/"}, launch.ExecOptions{ID: "a", Pid: 1})
	}
	exec := func(pid int, tty bool, args ...string) *Exec {
		return &Exec{Spec: spec, Pid: pid, Process: &specs.Process{Args: args, Terminal: tty}}
	}
	other := exec(1, false, "a")
	other.Spec = &specs.Spec{}
	var e Execs
	for i, step := range []struct {
		exec *Exec
		made bool
		err  error
	}{
		{exec(1, false, "a"), true, failing},
		{exec(1, false, "a"), true, nil},
		{exec(1, false, "a"), false, nil},
		{exec(1, false, "a", ""), true, nil},
		{exec(1, true, "a"), true, nil},
		{exec(1, false, "a"), false, nil},
		{exec(2, false, "a"), true, nil}, // in place of "a", ""
		{exec(1, true, "a"), false, nil},
		{exec(1, false, "a"), false, nil},
		{exec(1, false, "a", ""), true, nil}, // in place of 2
		{other, true, nil},
		{exec(2, false, "a"), true, nil},
	} {
		before := compiled
		err = step.err
		p, err := e.Program(step.exec, compile)
		if made := compiled > before; made != step.made || !errors.Is(err, step.err) || err == nil && p == nil {
			t.Errorf("step %d: compiled %v, want %v; %v", i, made, step.made, err)
		}
		if len(e.last) > maxExecs {
			t.Errorf("%d are kept", len(e.last))
		}
	}
	args = []string{strings.Repeat("a", maxExecSize)}
	for range 2 {
		before := compiled
		if p, err := e.Program(exec(1, false, args...), compile); p == nil || err != nil || compiled == before {
			t.Errorf("a large one was kept; %v", err)
		}
	}
	var none *Execs
	if p, err := none.Program(exec(1, false, "a"), compile); p == nil || err != nil {
		t.Errorf("%v, %v", p, err)
	}
}
