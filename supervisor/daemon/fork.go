package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"podstead/oci/launch"
	"podstead/supervisor/internal/protocol"
)

// Child is a forked process that waits for its start. Either Start or Abandon
// is called, once.
type Child interface {
	// Start releases it, and returns when its image runs. hooks is called if it
	// stops for hooks before that.
	Start(hooks func(*launch.Child, launch.Point) error) error
	// Abandon gives it up; it ends.
	Abandon() error
}

// Forked is what a Forker returns. The descriptors belong to the caller,
// except Control, which is the Child's.
type Forked struct {
	Child Child // nil: it was started and its image runs
	// Alone is in place of Child for one that was started and is on its way.
	Alone      *launch.Child
	Pid        int
	StartTicks uint64
	Pidfd      *os.File
	Console    *os.File // nil without a terminal
	// Control is what the child waits on; an upgrade hands it on.
	Control  *os.File
	Warnings []string
}

// Forker makes children that execute encoded launch programs.
type Forker interface {
	// Fork makes a child that waits for its start, or starts it at once, which
	// saves waking up twice.
	Fork(program []byte, files []*os.File, opt launch.ForkOptions) (*Forked, error)
	// Adopt makes a Child of one that was forked before an upgrade; of f, Pid,
	// StartTicks, Pidfd and Control are set.
	Adopt(program []byte, f *Forked) (Child, error)
}

// Programs is the Forker of the real supervisor.
type Programs struct{}

// Fork forks by package launch, or lets a command do it, which starts it, too.
func (Programs) Fork(program []byte, files []*os.File, opt launch.ForkOptions) (*Forked, error) {
	if c, ok, err := protocol.DecodeCommand(program); err != nil {
		return nil, fmt.Errorf("decode command: %w", err)
	} else if ok {
		return runCommand(c, opt.Stdio)
	}
	p, err := opt.Forker.Decode(program)
	if err != nil {
		return nil, err
	}
	c, err := launch.ForkWith(p, files, opt)
	if err != nil {
		return nil, err
	}
	f := &Forked{
		Pid:        c.Pid,
		StartTicks: c.StartTime,
		Pidfd:      c.Pidfd,
		Console:    c.Console,
		Warnings:   c.Warnings,
	}
	switch {
	case opt.NoWait && c.Alone():
		f.Alone = c
	case !opt.Start:
		f.Child, f.Control = programChild{c}, c.Control
	}
	return f, nil
}

// Adopt adopts by package launch.
func (Programs) Adopt(program []byte, f *Forked) (Child, error) {
	p := new(launch.Program)
	if err := p.UnmarshalBinary(program); err != nil {
		return nil, fmt.Errorf("decode launch program: %w", err)
	}
	return programChild{launch.Adopt(p, f.Pid, f.StartTicks, f.Pidfd, f.Control)}, nil
}

// programChild is a Child that executes a launch program.
type programChild struct{ *launch.Child }

func (c programChild) Start(hooks func(*launch.Child, launch.Point) error) error {
	c.AtPoint = hooks
	return c.Child.Start()
}

// hooksBy lets who asked for a launch or a start run the hooks of its
// specification, while the child waits at a point: this program runs nobody's
// programs but containers. What asked may be gone; then launch or start have
// failed.
func hooksBy(who *os.File, expected launch.Point) func(*launch.Child, launch.Point) error {
	return func(c *launch.Child, at launch.Point) error {
		if who == nil || at != expected {
			return fmt.Errorf("hooks: nobody runs those of point %d", at)
		}
		if _, err := who.WriteString(strconv.Itoa(c.Pid)); err != nil {
			return fmt.Errorf("hooks: %w", err)
		}
		answer := make([]byte, maxHookAnswer)
		n, err := who.Read(answer)
		switch {
		case err == io.EOF:
			return errors.New("hooks: whoever runs them is gone")
		case err != nil:
			return fmt.Errorf("hooks: %w", err)
		case string(answer[:n]) != protocol.HooksDone:
			return errors.New(string(answer[:n]))
		}
		return nil
	}
}

// maxHookAnswer bounds what is said of a hook that failed.
const maxHookAnswer = 8 << 10
