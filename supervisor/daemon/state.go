package daemon

import (
	"fmt"
	"time"

	"podstead/supervisor/internal/crilog"
	"podstead/supervisor/internal/protocol"
)

// stateVersion is raised when the meaning of the saved state changes. Fields
// that are added at the end of a struct need no new version.
const stateVersion = 1

// savedState is everything that an upgrade hands over. Descriptors are numbers
// that stay the same across execve.
type savedState struct {
	Version  int
	Lock     int
	Listener int
	Conns    []savedConn
	Procs    []savedProcess
	Stored   []savedStore
	Engine   savedEngine
	Stopping bool
	// The request that asked for the upgrade: conn is its index + 1, or 0.
	UpgradeConn int
	UpgradeSeq  int
}

func (s *savedState) Code(c *protocol.Coder) {
	c.IntVar(&s.Version)
	c.IntVar(&s.Lock)
	c.IntVar(&s.Listener)
	protocol.Slice(c, &s.Conns, func(c *protocol.Coder, v *savedConn) { c.Nested(v) })
	protocol.Slice(c, &s.Procs, func(c *protocol.Coder, v *savedProcess) { c.Nested(v) })
	protocol.Slice(c, &s.Stored, func(c *protocol.Coder, v *savedStore) { c.Nested(v) })
	c.Nested(&s.Engine)
	c.Bool(&s.Stopping)
	c.IntVar(&s.UpgradeConn)
	c.IntVar(&s.UpgradeSeq)
}

// decodeState reads a state, and refuses one that this program does not know.
func decodeState(b []byte) (*savedState, error) {
	s := &savedState{}
	if err := protocol.Decode(b, s); err != nil {
		return nil, fmt.Errorf("read the state before the upgrade: %w", err)
	}
	if s.Version != stateVersion {
		return nil, fmt.Errorf("the state before the upgrade has version %d, not %d", s.Version, stateVersion)
	}
	return s, nil
}

type savedConn struct {
	Fd, Pid  int
	Watch    int
	Watching bool
}

func (s *savedConn) Code(c *protocol.Coder) {
	c.IntVar(&s.Fd)
	c.IntVar(&s.Pid)
	c.IntVar(&s.Watch)
	c.Bool(&s.Watching)
}

type savedStore struct {
	Name string
	Fds  []int
}

func (s *savedStore) Code(c *protocol.Coder) {
	c.String(&s.Name)
	protocol.Slice(c, &s.Fds, (*protocol.Coder).IntVar)
}

// savedProcess is a process in the state of an upgrade, and, without its
// descriptors and lines, its record on disk.
type savedProcess struct {
	Process   protocol.Process
	Log       protocol.LogFile
	Logged    bool
	StdinOnce bool
	Reaps     bool
	// Program is needed as long as the process waits for its start.
	Program []byte
	// Pipes are the inodes of its stdio pipes, 0 for none.
	Pipes [3]uint64

	Pidfd, Stdin, Control, LogFd int // -1 for none
	Outputs                      [2]int
	Pty                          bool
	Drained                      bool
	Partial                      [2][]byte
	Unreported                   int64
	Cause                        string
	Attached                     []savedAttachment
	Once                         bool
}

func (s *savedProcess) Code(c *protocol.Coder) {
	c.Nested(&s.Process)
	s.Log.Code(c)
	c.Bool(&s.Logged)
	c.Bool(&s.StdinOnce)
	c.Bool(&s.Reaps)
	c.Bytes(&s.Program)
	c.IntVar(&s.Pidfd)
	c.IntVar(&s.Stdin)
	c.IntVar(&s.Control)
	c.IntVar(&s.LogFd)
	c.Bool(&s.Pty)
	c.Bool(&s.Drained)
	for i := range s.Pipes {
		c.Uint(&s.Pipes[i])
	}
	for i := range s.Outputs {
		c.IntVar(&s.Outputs[i])
		c.Bytes(&s.Partial[i])
	}
	c.Int(&s.Unreported)
	c.String(&s.Cause)
	protocol.Slice(c, &s.Attached, func(c *protocol.Coder, a *savedAttachment) { c.Nested(a) })
	c.Bool(&s.Once)
}

type savedAttachment struct {
	Conn, Seq int // index of the connection
	Stdin     bool
	Outs      [2]int
}

func (s *savedAttachment) Code(c *protocol.Coder) {
	c.IntVar(&s.Conn)
	c.IntVar(&s.Seq)
	c.Bool(&s.Stdin)
	c.IntVar(&s.Outs[0])
	c.IntVar(&s.Outs[1])
}

// savedEngine is the engine in the state of an upgrade and on disk.
type savedEngine struct {
	Wanted     bool
	Request    protocol.EngineRequest
	Pid        int
	StartTicks uint64
	Begun      time.Time
	Delay      int64

	Out       [2]int
	Pidfd     int
	Reaps     bool
	Exits     int
	FrontConn int // index + 1, 0 for none
	FrontSeq  int
}

func (s *savedEngine) Code(c *protocol.Coder) {
	c.Bool(&s.Wanted)
	c.Nested(&s.Request)
	c.IntVar(&s.Pid)
	c.Uint(&s.StartTicks)
	c.Time(&s.Begun)
	c.Int(&s.Delay)
	c.IntVar(&s.Out[0])
	c.IntVar(&s.Out[1])
	c.IntVar(&s.Pidfd)
	c.Bool(&s.Reaps)
	c.IntVar(&s.Exits)
	c.IntVar(&s.FrontConn)
	c.IntVar(&s.FrontSeq)
}

// save packs a process without its outputs: its record.
func (p *process) save() savedProcess {
	s := savedProcess{
		Process:   p.Process,
		Log:       p.Log,
		Logged:    p.io != nil,
		StdinOnce: p.StdinOnce,
		Reaps:     p.reaps,
		Once:      p.once,
		Program:   p.program,
		Pipes:     p.pipes,
		Pidfd:     -1,
		Stdin:     p.stdin,
		Control:   -1,
		LogFd:     -1,
		Outputs:   [2]int{-1, -1},
	}
	if p.pidfd != nil {
		s.Pidfd = int(p.pidfd.Fd())
	}
	if p.control != nil {
		s.Control = int(p.control.Fd())
	}
	return s
}

// saveOutputs adds the outputs, for an upgrade. The strand must be idle.
func (p *process) saveOutputs(s *savedProcess) {
	if p.io == nil {
		return
	}
	s.Drained = p.io.exited
	for i, o := range p.io.outputs {
		if o != nil {
			s.Outputs[i], s.Pty = o.fd, o.pty
		}
	}
	if log := p.io.log; log != nil {
		s.LogFd, s.Partial, s.Unreported, s.Cause = log.Fd(), log.Partial, log.Unreported, log.Cause
	}
}

// descriptors lists all descriptors of the state.
func (s *savedState) descriptors() []int {
	fds := []int{s.Lock, s.Listener, s.Engine.Out[0], s.Engine.Out[1], s.Engine.Pidfd}
	for _, c := range s.Conns {
		fds = append(fds, c.Fd)
	}
	for _, st := range s.Stored {
		fds = append(fds, st.Fds...)
	}
	for i := range s.Procs {
		p := &s.Procs[i]
		fds = append(fds, p.Pidfd, p.Stdin, p.Control, p.LogFd, p.Outputs[0], p.Outputs[1])
		for _, a := range p.Attached {
			fds = append(fds, a.Outs[:]...)
		}
	}
	return fds
}

// restoreLog makes the log of a saved process.
func (s *savedProcess) restoreLog() (*crilog.Writer, error) {
	if s.LogFd < 0 {
		return nil, nil
	}
	w, err := crilog.Adopt(crilog.Options(s.Log), s.LogFd)
	if err != nil {
		return nil, err
	}
	w.Partial, w.Unreported, w.Cause, w.Lost = s.Partial, s.Unreported, s.Cause, s.Process.LostOutput
	return w, nil
}
