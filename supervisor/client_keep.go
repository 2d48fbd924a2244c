package supervisor

import (
	"context"
	"os"
	"time"

	"podstead/supervisor/internal/protocol"
	"podstead/sys"
)

// kept is what a Client holds of a process for the next supervisor.
type kept struct {
	handle protocol.Handle
	files  []*os.File
}

// keep holds the descriptors of a process, should its supervisor die; a pty
// that the caller asked for is returned instead.
func (c *Client) keep(h *protocol.Handle, files []*os.File, wantConsole bool) (console *os.File) {
	if wantConsole && h.Kind.Console && len(files) > 0 {
		console, files = files[len(files)-1], files[:len(files)-1]
		h.Kind.Console = false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	id := h.Process.ID
	if !c.revives || c.closed || len(files) == 0 {
		sys.CloseAll(files)
		return console
	}
	sys.CloseAll(c.processes[id].files)
	c.processes[id] = kept{*h, files}
	return console
}

// release forgets a process that is dead.
func (c *Client) release(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sys.CloseAll(c.processes[id].files)
	delete(c.processes, id)
}

// keepStored holds copies of stored descriptors; none releases them.
func (c *Client) keepStored(name string, files []*os.File) error {
	var copies []*os.File
	for _, f := range files {
		dup, err := sys.Dup(f)
		if err != nil {
			sys.CloseAll(copies)
			return err
		}
		copies = append(copies, dup)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	sys.CloseAll(c.stored[name])
	delete(c.stored, name)
	if !c.revives || c.closed {
		sys.CloseAll(copies)
	} else if len(copies) > 0 {
		c.stored[name] = copies
	}
	return nil
}

// revive waits until the connection breaks, then finds or starts the next
// supervisor and returns to it what was kept, until Close.
func (c *Client) revive(ctx context.Context, w *wire) {
	defer close(c.revived)
	for {
		select {
		case <-w.done:
		case <-ctx.Done():
			return
		}
		c.mu.Lock()
		c.wire = nil
		c.mu.Unlock()
		var err error
		for w, err = c.reconnect(ctx); err != nil; w, err = c.reconnect(ctx) {
			select {
			case <-time.After(reconnectPause):
			case <-ctx.Done():
				return
			}
		}
		c.mu.Lock()
		c.wire = w
		close(c.changed)
		c.changed = make(chan struct{})
		c.mu.Unlock()
	}
}

const reconnectPause = 100 * time.Millisecond

func (c *Client) reconnect(ctx context.Context) (*wire, error) {
	w, err := ensure(ctx, c.runDir)
	if err != nil {
		return nil, err
	}
	if err := c.giveBack(ctx, w); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// giveBack returns what was kept.
func (c *Client) giveBack(ctx context.Context, w *wire) error {
	c.mu.Lock()
	defer c.mu.Unlock() // nobody else has a connection to wait for
	for id := range c.processes {
		k := c.processes[id]
		if _, err := w.ask(ctx, protocol.Return, &k.handle, k.files, nil); err != nil {
			return err
		}
	}
	for name, files := range c.stored {
		if _, err := w.ask(ctx, protocol.Store, &protocol.Name{Name: name}, files, nil); err != nil {
			return err
		}
	}
	return nil
}

// fetchHandles asks for the descriptors of processes that a client before this
// one launched.
func (c *Client) fetchHandles(ctx context.Context, w *wire) error {
	call, err := w.begin(protocol.Handles, nil, nil)
	if err != nil {
		return err
	}
	defer call.end()
	for {
		p, err := call.next(ctx)
		if err != nil {
			return err
		}
		if p.Op == protocol.OK {
			return nil
		}
		var h protocol.Handle
		files, err := open(p, &h)
		if err != nil {
			return err
		}
		c.keep(&h, files, false)
	}
}
