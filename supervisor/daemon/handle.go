package daemon

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"podstead/supervisor/internal/protocol"
)

// request is one message of a client, while it is handled.
type request struct {
	*protocol.Packet
	c *conn
}

// handle answers one request, now or later. A handler that keeps descriptors
// takes them out of r.Fds.
func (d *daemon) handle(c *conn, p *protocol.Packet) {
	r := &request{p, c}
	body, later, err := d.serveRequest(r)
	protocol.CloseFds(r.Fds)
	if err != nil || !later {
		c.answer(r.Seq, body, err)
	}
}

// takeFds makes the handler the owner of the request's descriptors.
func (r *request) takeFds() []int {
	fds := r.Fds
	r.Fds = nil
	return fds
}

// decode reads the body; what it was is in the error.
func (r *request) decode(m protocol.Coded) error {
	if err := protocol.Decode(r.Body, m); err != nil {
		return fmt.Errorf("request %d: %w", r.Op, err)
	}
	return nil
}

// serveRequest returns the body of the answer, or that it comes later.
func (d *daemon) serveRequest(r *request) (body protocol.Coded, later bool, err error) {
	switch r.Op {
	case protocol.Hello:
		return d.hello()
	case protocol.Launch:
		var req protocol.LaunchRequest
		if err := r.decode(&req); err != nil {
			return nil, false, err
		}
		if err := checkID(req.ID); err != nil {
			return nil, false, err
		}
		return nil, true, d.launch(r.c, r.Seq, &req, r.takeFds())
	case protocol.List:
		return d.list(), false, nil
	case protocol.Watch:
		r.c.watch, r.c.watching = r.Seq, true
		r.c.send(&protocol.Packet{Op: protocol.Event, Seq: r.Seq})
		return nil, true, nil
	case protocol.Start, protocol.Get, protocol.Forget, protocol.ReopenLog:
		return d.serveNamed(r)
	case protocol.Signal, protocol.Resize:
		return nil, false, d.serveControl(r)
	case protocol.Attach, protocol.CloseStdin, protocol.Detach:
		return d.serveAttach(r)
	case protocol.Store, protocol.Take, protocol.Drop:
		return d.serveStore(r)
	case protocol.RunEngine, protocol.StopEngine:
		return d.serveEngine(r)
	case protocol.Handles:
		d.handles(r)
		return nil, false, nil
	case protocol.Become:
		return d.serveBecome(r)
	case protocol.Upgrade:
		var n protocol.Name
		if err := r.decode(&n); err != nil {
			return nil, false, err
		}
		c, seq := r.c, r.Seq
		d.beginUpgrade(&upgrade{exe: n.Name, conn: c, seq: seq, done: func(err error) { c.answer(seq, nil, err) }})
		return nil, true, nil
	case protocol.Return:
		var h protocol.Handle
		if err := r.decode(&h); err != nil {
			return nil, false, err
		}
		return nil, false, d.returned(&h, r.takeFds())
	}
	return nil, false, fmt.Errorf("request %d is not known: %w", r.Op, errInvalid)
}

func (d *daemon) hello() (protocol.Coded, bool, error) {
	return &protocol.Greeting{Version: protocol.Version, Pid: os.Getpid()}, false, nil
}

func (d *daemon) list() *protocol.ProcessList {
	l := &protocol.ProcessList{}
	for _, p := range d.procs {
		shown := p.Process
		if shown.State == "" {
			shown = protocol.Process{ID: p.ID, State: launching}
		}
		l.Processes = append(l.Processes, shown)
	}
	slices.SortFunc(l.Processes, func(a, b protocol.Process) int { return strings.Compare(a.ID, b.ID) })
	return l
}

// serveNamed serves the requests whose body is a process's ID.
func (d *daemon) serveNamed(r *request) (protocol.Coded, bool, error) {
	var n protocol.Name
	if err := r.decode(&n); err != nil {
		return nil, false, err
	}
	if r.Op == protocol.Forget {
		return nil, false, d.forget(n.Name)
	}
	p, err := d.process(n.Name)
	if err != nil {
		return nil, false, err
	}
	c, seq := r.c, r.Seq
	switch r.Op {
	case protocol.Start:
		d.start(p, r.takeFds(), func(err error) { c.answer(seq, &p.Process, err) })
		return nil, true, nil
	case protocol.ReopenLog:
		if p.exitSeen {
			return nil, false, fmt.Errorf("reopen log of %s: %w", p.ID, errGone)
		}
		if p.io == nil || p.Log.Path == "" {
			return nil, false, fmt.Errorf("reopen log of %s: it has none: %w", p.ID, errInvalid)
		}
		p.io.reopen(func(err error) { c.answer(seq, nil, err) })
		return nil, true, nil
	}
	return &p.Process, false, nil
}

func (d *daemon) serveControl(r *request) error {
	if r.Op == protocol.Signal {
		var req protocol.SignalRequest
		if err := r.decode(&req); err != nil {
			return err
		}
		p := d.procs[req.ID]
		if p == nil {
			return fmt.Errorf("process %s: %w", req.ID, errNotExist)
		}
		return p.signal(req.Signal)
	}
	var req protocol.ResizeRequest
	if err := r.decode(&req); err != nil {
		return err
	}
	p, err := d.process(req.ID)
	if err != nil {
		return err
	}
	return p.resize(req.Width, req.Height)
}

func (d *daemon) serveAttach(r *request) (protocol.Coded, bool, error) {
	if r.Op == protocol.Attach {
		var req protocol.AttachRequest
		if err := r.decode(&req); err != nil {
			return nil, false, err
		}
		err := d.attach(r.c, r.Seq, &req, r.Fds)
		if err == nil {
			r.takeFds()
		}
		return nil, true, err
	}
	var n protocol.Number
	if err := r.decode(&n); err != nil {
		return nil, false, err
	}
	a := r.c.attached[uint32(n.N)]
	if a == nil {
		return nil, false, nil // it has ended meanwhile
	}
	if r.Op == protocol.CloseStdin {
		d.closeStdin(a)
	} else {
		d.detach(a)
	}
	return nil, false, nil
}

func (d *daemon) serveStore(r *request) (protocol.Coded, bool, error) {
	var n protocol.Name
	if err := r.decode(&n); err != nil {
		return nil, false, err
	}
	switch r.Op {
	case protocol.Store:
		err := d.store(n.Name, r.Fds)
		if err == nil {
			r.takeFds()
		}
		return nil, false, err
	case protocol.Drop:
		d.drop(n.Name)
		return nil, false, nil
	}
	fds, err := d.take(n.Name)
	if err != nil {
		return nil, false, err
	}
	r.c.answer(r.Seq, nil, nil, fds...)
	return nil, true, nil
}

func (d *daemon) serveEngine(r *request) (protocol.Coded, bool, error) {
	if r.Op == protocol.StopEngine {
		var n protocol.Number
		if err := r.decode(&n); err != nil {
			return nil, false, err
		}
		c, seq := r.c, r.Seq
		d.stopEngine(time.Duration(n.N)*time.Millisecond, func() { c.answer(seq, nil, nil) })
		return nil, true, nil
	}
	var req protocol.EngineRequest
	if err := r.decode(&req); err != nil {
		return nil, false, err
	}
	err := d.runEngine(r.c, r.Seq, &req, r.Fds)
	if err == nil {
		r.takeFds()
	}
	return nil, true, err
}

// handles sends every live process with its descriptors.
func (d *daemon) handles(r *request) {
	for _, p := range d.procs {
		if p.State == "" {
			continue
		}
		h, fds := p.handle()
		r.c.send(&protocol.Packet{Op: protocol.Event, Seq: r.Seq, Body: protocol.Encode(h), Fds: fds})
	}
}
