package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"podstead/supervisor/internal/protocol"
)

// Client talks to the supervisor of a run directory. Safe for concurrent use.
//
// When its connection breaks, event channels are closed, and a Launch, a Signal
// or an Attach under way fails with ErrDisconnected: it may have been done. A
// Client of Ensure then starts the next supervisor, if that died, and returns
// to it the descriptors that it holds for this case; all other calls wait for
// it. A Client of Connect stays broken: every call fails.
type Client struct {
	runDir  string
	revives bool          // holds descriptors, and reconnects
	cancel  func()        // ends revive
	revived chan struct{} // closed when revive has ended

	mu        sync.Mutex
	wire      *wire         // nil while there is none
	changed   chan struct{} // closed when there is another one
	processes map[string]kept
	stored    map[string][]*os.File
	closed    bool
}

// Connect reaches the supervisor that listens in runDir, for a short-lived
// client that is not the engine.
func Connect(ctx context.Context, runDir string) (*Client, error) {
	w, err := dial(ctx, runDir)
	if err != nil {
		return nil, err
	}
	return &Client{runDir: runDir, wire: w}, nil
}

// Ensure connects the engine to the supervisor of a run directory, and starts
// one if none runs. Several callers at once get the same one.
func Ensure(ctx context.Context, runDir string) (*Client, error) {
	w, err := ensure(ctx, runDir)
	if err != nil {
		return nil, err
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &Client{
		runDir:    runDir,
		revives:   true,
		cancel:    cancel,
		revived:   make(chan struct{}),
		wire:      w,
		changed:   make(chan struct{}),
		processes: map[string]kept{},
		stored:    map[string][]*os.File{},
	}
	if err := c.fetchHandles(ctx, w); err != nil {
		cancel()
		close(c.revived)
		c.Close()
		return nil, err
	}
	go c.revive(life, w)
	return c, nil
}

// ask makes a simple request, and makes it again to the next supervisor if the
// connection broke meanwhile and it does no harm to ask twice.
func (c *Client) ask(ctx context.Context, op protocol.Op, body, answer protocol.Coded, files ...*os.File) ([]*os.File, error) {
	once := op == protocol.Launch || op == protocol.Signal
	for {
		w, err := c.connected(ctx)
		if err != nil {
			return nil, err
		}
		got, err := w.ask(ctx, op, body, files, answer)
		again := errors.Is(err, errUnsent) || errors.Is(err, ErrDisconnected) && !once
		if !again || !c.revives {
			return got, err
		}
	}
}

func (c *Client) connected(ctx context.Context) (*wire, error) {
	for {
		c.mu.Lock()
		w, changed, closed := c.wire, c.changed, c.closed
		c.mu.Unlock()
		switch {
		case closed:
			return nil, os.ErrClosed
		case w != nil && (!c.revives || !w.broken()):
			return w, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-c.revived:
			return nil, os.ErrClosed
		}
	}
}

// Launch starts a process; see Launch. It returns an error that names the
// failed step of the launch program, and then nothing of it is left. When ctx
// ends, the launch goes on and another Launch of the same ID joins it; once it
// is done, that is os.ErrExist, and Get tells about it.
// With a pty and no log, console is the pty's master.
func (c *Client) Launch(ctx context.Context, l Launch) (p Process, console *os.File, err error) {
	if l.Command != nil {
		return c.launch(ctx, l, protocol.EncodeCommand((*protocol.Command)(l.Command)), l.Command.Console != "")
	}
	program, err := l.Program.MarshalBinary()
	if err != nil {
		return Process{}, nil, fmt.Errorf("launch %s: %w", l.ID, err)
	}
	return c.launch(ctx, l, program, l.Program.Terminal() || l.LaterConsole)
}

// launch is Launch with the program encoded.
func (c *Client) launch(ctx context.Context, l Launch, program []byte, terminal bool) (Process, *os.File, error) {
	req := &protocol.LaunchRequest{
		ID:        l.ID,
		Program:   program,
		Terminal:  terminal,
		Log:       protocol.LogFile(l.Log),
		Logged:    l.Logged || l.Log.Path != "",
		Stdin:     l.Stdin,
		StdinOnce: l.StdinOnce,
		Start:     l.Start,
		Hooks:     l.Hooks != nil,
		Once:      l.Once,
	}
	files := append([]*os.File(nil), l.Files...)
	for i, f := range []*os.File{l.Stdio.Stdin, l.Stdio.Stdout, l.Stdio.Stderr} {
		if f == nil {
			continue
		}
		if req.Logged || terminal {
			return Process{}, nil, fmt.Errorf("launch %s: Stdio is given, but the stdio is a log or a pty", l.ID)
		}
		req.Stdio[i] = true
		f.Fd() // makes the open file block, as programs expect of their stdio
		files = append(files, f)
	}
	if req.Hooks {
		files = append(files, l.Hooks)
	}
	var h protocol.Handle
	fds, err := c.ask(ctx, protocol.Launch, req, &h, files...)
	if err != nil {
		return Process{}, nil, err
	}
	console := c.keep(&h, fds, !req.Logged)
	return Process(h.Process), console, nil
}

// Become makes another child of the supervisor the process of an ID, whose log
// and stdio it has: one that the process has made as its own sibling, with
// CLONE_PARENT, to go on in its place. Exits are the new one's from then on.
// console, if not nil, is the master of its pty; the caller keeps its own.
func (c *Client) Become(ctx context.Context, id string, pid int, console *os.File) (Process, error) {
	var files []*os.File
	if console != nil {
		files = append(files, console)
	}
	var h protocol.Handle
	fds, err := c.ask(ctx, protocol.Become, &protocol.BecomeRequest{ID: id, Pid: pid}, &h, files...)
	if err != nil {
		return Process{}, err
	}
	c.keep(&h, fds, false)
	return Process(h.Process), nil
}

// Start releases a created process and returns when its image runs. Starting
// a running one does nothing.
func (c *Client) Start(ctx context.Context, id string) (Process, error) {
	return c.askProcess(ctx, protocol.Start, id)
}

// StartWithHooks is Start for a program that stops at launch.PointStart: then
// the process's pid comes out of hooks' other end, and is answered as that of
// Launch.Hooks is.
func (c *Client) StartWithHooks(ctx context.Context, id string, hooks *os.File) (Process, error) {
	var p protocol.Process
	_, err := c.ask(ctx, protocol.Start, &protocol.Name{Name: id}, &p, hooks)
	return Process(p), err
}

// Get returns one process.
func (c *Client) Get(ctx context.Context, id string) (Process, error) {
	return c.askProcess(ctx, protocol.Get, id)
}

func (c *Client) askProcess(ctx context.Context, op protocol.Op, id string) (Process, error) {
	var p protocol.Process
	_, err := c.ask(ctx, op, &protocol.Name{Name: id}, &p)
	return Process(p), err
}

// Signal sends a signal to the process (not to its children). A process that
// has exited is os.ErrProcessDone, an unknown one os.ErrNotExist; so it is for
// all calls. SIGKILL to a process whose Launch is under way makes that fail
// with os.ErrProcessDone as soon as it can be ended, and leaves nothing of it.
func (c *Client) Signal(ctx context.Context, id string, signal int) error {
	_, err := c.ask(ctx, protocol.Signal, &protocol.SignalRequest{ID: id, Signal: signal}, nil)
	return err
}

// List returns all processes, those whose launch is under way and exited ones
// that were not forgotten included, ordered by ID.
func (c *Client) List(ctx context.Context) ([]Process, error) {
	return list(func(l *protocol.ProcessList) error {
		_, err := c.ask(ctx, protocol.List, nil, l)
		return err
	})
}

func list(ask func(*protocol.ProcessList) error) ([]Process, error) {
	var l protocol.ProcessList
	if err := ask(&l); err != nil {
		return nil, err
	}
	ps := make([]Process, len(l.Processes))
	for i, p := range l.Processes {
		ps[i] = Process(p)
	}
	return ps, nil
}

// Forget drops the record of an exited process; unknown ones are no error.
func (c *Client) Forget(ctx context.Context, id string) error {
	_, err := c.ask(ctx, protocol.Forget, &protocol.Name{Name: id}, nil)
	if err == nil {
		c.release(id)
	}
	return err
}

// Events delivers every exit from now on, in order, until ctx or the
// connection ends; then the channel is closed. Who lists after Events returned
// misses nothing of what is kept until it is forgotten; see Follow for the rest.
// Events wait for a slow receiver. One set of events at a time
// for each Client: a later call takes over from an earlier one.
func (c *Client) Events(ctx context.Context) (<-chan Event, error) {
	_, call, err := c.watch(ctx)
	if err != nil {
		return nil, err
	}
	return c.forward(ctx, call), nil
}

// Following is where Follow begins.
type Following struct {
	// Ended are exits that came before the list was made: it may leave them out,
	// since a process launched with Once is dropped as soon as its exit is told.
	Ended []Event
	List  []Process
	// Events are the exits from then on.
	Events <-chan Event
}

// Follow is Events, and List as of its beginning: a process that ran before is
// among those that ended, or in the list, or lost with another supervisor.
func (c *Client) Follow(ctx context.Context) (*Following, error) {
	w, call, err := c.watch(ctx)
	if err != nil {
		return nil, err
	}
	return c.follow(ctx, w, call)
}

// follow is Follow once it is told of exits.
func (c *Client) follow(ctx context.Context, w *wire, call *call) (f *Following, err error) {
	f = &Following{}
	if f.List, err = list(func(l *protocol.ProcessList) error {
		_, err := w.ask(ctx, protocol.List, nil, nil, l)
		return err
	}); err != nil {
		call.end()
		return nil, err
	}
	// Packets are handed out in the order in which they came: what the list leaves
	// out is here by now.
	for _, packet := range call.taken() {
		ev, err := c.event(packet)
		if err != nil {
			call.end()
			return nil, err
		}
		f.Ended = append(f.Ended, ev)
	}
	f.Events = c.forward(ctx, call)
	return f, nil
}

// watch asks for events. The call must be ended.
func (c *Client) watch(ctx context.Context) (*wire, *call, error) {
	w, err := c.connected(ctx)
	if err != nil {
		return nil, nil, err
	}
	call, err := w.begin(protocol.Watch, nil, nil)
	if err != nil {
		return nil, nil, err
	}
	first, err := call.next(ctx)
	if err == nil {
		_, err = open(first, nil)
	}
	if err != nil {
		call.end()
		return nil, nil, err
	}
	return w, call, nil
}

func (c *Client) event(packet *protocol.Packet) (Event, error) {
	var p protocol.Process
	if _, err := open(packet, &p); err != nil {
		return Event{}, err
	}
	c.release(p.ID)
	return Event{Process(p)}, nil
}

// forward hands out the events of a call, and ends it.
func (c *Client) forward(ctx context.Context, call *call) <-chan Event {
	events := make(chan Event)
	go func() {
		defer close(events)
		defer call.end()
		for {
			packet, err := call.next(ctx)
			if err != nil {
				return
			}
			ev, err := c.event(packet)
			if err != nil {
				return
			}
			select {
			case events <- ev:
			case <-ctx.Done():
				return
			}
		}
	}()
	return events
}

// Resize sets the window of a logged process's pty. That of any other process
// is with its launcher.
func (c *Client) Resize(ctx context.Context, id string, width, height uint16) error {
	_, err := c.ask(ctx, protocol.Resize, &protocol.ResizeRequest{ID: id, Width: uint64(width), Height: uint64(height)}, nil)
	return err
}

// ReopenLog opens the log's path anew, for a rotation by rename. On an error
// the old file goes on and no new one appears.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	_, err := c.ask(ctx, protocol.ReopenLog, &protocol.Name{Name: id}, nil)
	return err
}

// Store keeps descriptors under a name until Drop, across engine restarts. The
// caller keeps its own. What was stored under the name before is closed.
func (c *Client) Store(ctx context.Context, name string, files ...*os.File) error {
	_, err := c.ask(ctx, protocol.Store, &protocol.Name{Name: name}, nil, files...)
	if err == nil {
		err = c.keepStored(name, files)
	}
	return err
}

// Take returns copies of stored descriptors, os.ErrNotExist if there are none.
func (c *Client) Take(ctx context.Context, name string) ([]*os.File, error) {
	files, err := c.ask(ctx, protocol.Take, &protocol.Name{Name: name}, nil)
	if err == nil {
		err = c.keepStored(name, files)
	}
	return files, err
}

// Drop closes stored descriptors; unknown names are no error.
func (c *Client) Drop(ctx context.Context, name string) error {
	_, err := c.ask(ctx, protocol.Drop, &protocol.Name{Name: name}, nil)
	return errors.Join(err, c.keepStored(name, nil))
}

// Close ends the connection; the supervisor goes on.
func (c *Client) Close() error {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	c.mu.Unlock()
	if closed {
		return nil
	}
	if c.revives {
		c.cancel()
		<-c.revived
	}
	if c.wire != nil {
		c.wire.close()
	}
	for id := range c.processes {
		c.release(id)
	}
	for name := range c.stored {
		c.keepStored(name, nil)
	}
	return nil
}
