package protocol

import "time"

// State of a process.
type State string

// Process is what the supervisor tells about a process; package supervisor
// documents the fields.
type Process struct {
	ID         string
	State      State
	Pid        int
	StartTicks uint64
	StartedAt  time.Time
	ExitedAt   time.Time
	ExitCode   int
	Console    bool
	LostOutput int64
	Warnings   []string
}

// Code codes the fields.
func (p *Process) Code(c *Coder) {
	c.String(&p.ID)
	c.String((*string)(&p.State))
	c.IntVar(&p.Pid)
	c.Uint(&p.StartTicks)
	c.Time(&p.StartedAt)
	c.Time(&p.ExitedAt)
	c.IntVar(&p.ExitCode)
	c.Bool(&p.Console)
	c.Int(&p.LostOutput)
	Slice(c, &p.Warnings, (*Coder).String)
}

// LogFile says where output is logged.
type LogFile struct {
	Path     string
	MaxBytes int64
	MaxFiles int
}

// Code codes the fields.
func (l *LogFile) Code(c *Coder) {
	c.String(&l.Path)
	c.Int(&l.MaxBytes)
	c.IntVar(&l.MaxFiles)
}

// LaunchRequest asks for a process. Its descriptors are those of the program
// in slot order, then those of stdin, stdout and stderr that Stdio marks.
type LaunchRequest struct {
	ID               string
	Program          []byte
	Terminal         bool
	Log              LogFile
	Stdio            [3]bool
	Logged           bool // the supervisor makes the stdio
	Stdin, StdinOnce bool
	Start            bool
	Hooks            bool // one more descriptor: who runs the hooks, see Launch.Hooks
	Once             bool // see Launch.Once
}

// HooksDone is what lets a launch that waits for its hooks go on.
const HooksDone = "done"

// Code codes the fields.
func (l *LaunchRequest) Code(c *Coder) {
	c.String(&l.ID)
	c.Bytes(&l.Program)
	c.Bool(&l.Terminal)
	l.Log.Code(c)
	for i := range l.Stdio {
		c.Bool(&l.Stdio[i])
	}
	c.Bool(&l.Logged)
	c.Bool(&l.Stdin)
	c.Bool(&l.StdinOnce)
	c.Bool(&l.Start)
	c.Bool(&l.Hooks)
	c.Bool(&l.Once)
}

// HandleKind says what the descriptors beside a process are, in this order.
type HandleKind struct {
	Pidfd, Console bool
}

// Handle is a process with the descriptors that keep it whole if the
// supervisor dies: its client holds copies and returns them to the next one.
type Handle struct {
	Process Process
	Kind    HandleKind
}

// Code codes the fields.
func (h *Handle) Code(c *Coder) {
	c.Nested(&h.Process)
	c.Bool(&h.Kind.Pidfd)
	c.Bool(&h.Kind.Console)
}

// ProcessList answers List.
type ProcessList struct{ Processes []Process }

// Code codes the fields.
func (l *ProcessList) Code(c *Coder) {
	Slice(c, &l.Processes, func(c *Coder, p *Process) { c.Nested(p) })
}

// Name is the body of requests that only name a process or a stored set of
// descriptors.
type Name struct{ Name string }

// Code codes the fields.
func (n *Name) Code(c *Coder) { c.String(&n.Name) }

// Number is a body of one number: the protocol's version, a signal's grace in
// milliseconds, an exit code, the request that made an attachment.
type Number struct{ N int64 }

// Code codes the fields.
func (n *Number) Code(c *Coder) { c.Int(&n.N) }

// Greeting answers Hello.
type Greeting struct {
	Version int
	Pid     int
}

// Code codes the fields.
func (g *Greeting) Code(c *Coder) {
	c.IntVar(&g.Version)
	c.IntVar(&g.Pid)
}

// SignalRequest sends a signal to a process.
type SignalRequest struct {
	ID     string
	Signal int
}

// Code codes the fields.
func (s *SignalRequest) Code(c *Coder) {
	c.String(&s.ID)
	c.IntVar(&s.Signal)
}

// BecomeRequest makes another child of the supervisor the process of an ID. Its
// descriptor, if there is one, is the master of its pty.
type BecomeRequest struct {
	ID  string
	Pid int
}

// Code codes the fields.
func (b *BecomeRequest) Code(c *Coder) {
	c.String(&b.ID)
	c.IntVar(&b.Pid)
}

// ResizeRequest sets the window of a pty.
type ResizeRequest struct {
	ID            string
	Width, Height uint64
}

// Code codes the fields.
func (r *ResizeRequest) Code(c *Coder) {
	c.String(&r.ID)
	c.Uint(&r.Width)
	c.Uint(&r.Height)
}

// AttachRequest connects to a logged process. Its descriptors are the write
// ends of pipes for the outputs that are wanted, in order.
type AttachRequest struct {
	ID                    string
	Stdin, Stdout, Stderr bool
}

// Code codes the fields.
func (a *AttachRequest) Code(c *Coder) {
	c.String(&a.ID)
	c.Bool(&a.Stdin)
	c.Bool(&a.Stdout)
	c.Bool(&a.Stderr)
}

// EngineRequest asks to run the engine and keep it running. Its descriptors
// become the engine's stdout and stderr.
type EngineRequest struct {
	Argv, Env []string
	Dir       string
	// Adopt takes over an engine that runs already and whose front is gone,
	// instead of refusing; the running engine is left as it is.
	Adopt bool
}

// Code codes the fields.
func (e *EngineRequest) Code(c *Coder) {
	Slice(c, &e.Argv, (*Coder).String)
	Slice(c, &e.Env, (*Coder).String)
	c.String(&e.Dir)
	c.Bool(&e.Adopt)
}
