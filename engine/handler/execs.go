package handler

import (
	"slices"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/oci/launch"
)

// Execs are the programs of what was last executed in a container. Most of what is
// executed at all are probes, the same ones again and again. The zero value is one
// of a container in which nothing was executed yet. It is safe for concurrent use.
type Execs struct {
	mu   sync.Mutex
	last []execProgram // at most maxExecs, the latest first
}

// maxExecs is how many are kept: a container has two probes as a rule, and somebody
// may look into it in between. What is larger than maxExecSize is no probe, and is
// not kept.
const (
	maxExecs    = 3
	maxExecSize = 64 << 10
)

// execProgram is a program, and what it was made of.
type execProgram struct {
	spec     *specs.Spec
	pid      int
	args     []string
	terminal bool
	program  *launch.Program
}

func (p *execProgram) is(x *Exec) bool {
	return p.spec == x.Spec && p.pid == x.Pid && p.terminal == x.Process.Terminal && slices.Equal(p.args, x.Process.Args)
}

// Program returns that of an exec, which compile makes if there is none.
func (e *Execs) Program(x *Exec, compile func() (*launch.Program, error)) (*launch.Program, error) {
	if e == nil {
		return compile()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	i := slices.IndexFunc(e.last, func(p execProgram) bool { return p.is(x) })
	if i < 0 {
		p, err := compile()
		var size int
		if err == nil {
			p, size, err = p.Encoded()
		}
		if err != nil || size > maxExecSize {
			return p, err
		}
		if i = len(e.last); i == maxExecs {
			i--
			e.last = e.last[:i]
		}
		e.last = append(e.last, execProgram{x.Spec, x.Pid, slices.Clone(x.Process.Args), x.Process.Terminal, p})
	}
	p := e.last[i]
	copy(e.last[1:], e.last[:i])
	e.last[0] = p
	return p.program, nil
}
