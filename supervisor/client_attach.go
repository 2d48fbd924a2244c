package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"podstead/supervisor/internal/protocol"
)

// ErrSlowReader ends an Attach whose Stdout or Stderr took output so slowly
// that a pipe's worth of it (up to 1 MiB) was waiting.
var ErrSlowReader = protocol.ErrSlowReader

// Attach connects streams to a logged process; output that follows is copied
// to them until the process ends, all its outputs are closed, writing to them
// fails, or ctx ends. It returns then, after the last output was written. The
// end of Stdin ends the process's input if it was launched with StdinOnce; the
// outputs go on.
func (c *Client) Attach(ctx context.Context, id string, s Streams) error {
	w, err := c.connected(ctx)
	if err != nil {
		return err
	}
	a := attach{w: w, streams: s}
	defer a.close()
	if err := a.begin(ctx, id); err != nil {
		return err
	}
	if a.stdin != nil {
		go a.copyIn(ctx)
	}
	stop := context.AfterFunc(ctx, a.detach)
	defer stop()
	err = a.wait(ctx)
	// The supervisor has closed its ends: what is in the pipes still comes.
	for range a.outs {
		if werr := <-a.copied; err == nil {
			err = werr
		}
	}
	return err
}

// attach is one attachment under way.
type attach struct {
	w       *wire
	streams Streams
	call    *call
	stdin   *os.File   // the process's input, or nil
	outs    []*os.File // read ends of our pipes
	copied  chan error // one for each of outs
}

func (a *attach) begin(ctx context.Context, id string) error {
	req := &protocol.AttachRequest{ID: id, Stdin: a.streams.Stdin != nil, Stdout: a.streams.Stdout != nil, Stderr: a.streams.Stderr != nil}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	var writers []io.Writer
	for _, out := range []io.Writer{a.streams.Stdout, a.streams.Stderr} {
		if out == nil {
			continue
		}
		r, wr, err := os.Pipe()
		if err != nil {
			return fmt.Errorf("attach %s: %w", id, err)
		}
		a.outs, theirs, writers = append(a.outs, r), append(theirs, wr), append(writers, out)
	}
	var err error
	if a.call, err = a.w.begin(protocol.Attach, req, theirs); err != nil {
		a.drop()
		return err
	}
	p, err := a.call.next(ctx)
	if err != nil {
		a.detach()
		a.drop()
		return err
	}
	fds, err := open(p, nil)
	if err != nil {
		a.drop()
		return err
	}
	if len(fds) > 0 {
		a.stdin = fds[0]
	}
	a.copied = make(chan error, len(a.outs))
	for i, r := range a.outs {
		go a.copyOut(writers[i], r)
	}
	return nil
}

// drop closes pipes that nobody reads yet.
func (a *attach) drop() {
	for _, r := range a.outs {
		r.Close()
	}
	a.outs = nil
}

// copyOut copies one output; closing the pipe ends the attachment if the
// writer fails.
func (a *attach) copyOut(out io.Writer, r *os.File) {
	_, err := io.Copy(out, r)
	r.Close()
	a.copied <- err
}

// copyIn copies the input; the process's end of it is shared, so each side
// closes its own.
func (a *attach) copyIn(ctx context.Context) {
	io.Copy(a.stdin, a.streams.Stdin)
	a.stdin.Close()
	if a.call != nil {
		a.w.ask(ctx, protocol.CloseStdin, &protocol.Number{N: int64(a.call.seq)}, nil, nil)
	}
}

// wait returns how the attachment ended.
func (a *attach) wait(ctx context.Context) error {
	p, err := a.call.next(context.WithoutCancel(ctx))
	if err == nil {
		_, err = open(p, nil)
	}
	return errors.Join(err, context.Cause(ctx))
}

// detach asks for the end.
func (a *attach) detach() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	a.w.ask(ctx, protocol.Detach, &protocol.Number{N: int64(a.call.seq)}, nil, nil)
}

func (a *attach) close() {
	if a.stdin != nil {
		a.stdin.Close()
	}
	if a.call != nil {
		a.call.end()
	}
}
