package daemon

import (
	"fmt"
	"os"

	"podstead/oci/launch"
)

// Child is a forked process that waits for its start.
type Child interface {
	// Start releases it, and returns when its image runs.
	Start() error
}

// Forked is what a Forker returns. The descriptors belong to the caller.
type Forked struct {
	Child      Child
	Pid        int
	StartTicks uint64
	Pidfd      *os.File
	Console    *os.File // nil without a terminal
}

// Forker forks a child that executes an encoded launch program.
type Forker func(program []byte, files []*os.File, stdio launch.Stdio) (*Forked, error)

// ForkProgram is the Forker of the real supervisor.
func ForkProgram(program []byte, files []*os.File, stdio launch.Stdio) (*Forked, error) {
	var p launch.Program
	if err := p.UnmarshalBinary(program); err != nil {
		return nil, fmt.Errorf("decode launch program: %w", err)
	}
	c, err := launch.Fork(&p, files, stdio)
	if err != nil {
		return nil, err
	}
	return &Forked{Child: c, Pid: c.Pid, StartTicks: c.StartTime, Pidfd: c.Pidfd, Console: c.Console}, nil
}
