package docker

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/internal/family"
	"podstead/engine/internal/stream"
	"podstead/sys"
)

// maxExecOutput is how much of each output ExecSync keeps; the rest is read and
// dropped, so that neither memory nor the process suffers (CVE-2022-1708).
const maxExecOutput = 16 << 20

// ExecSync runs a command in a container and returns what it wrote. A command
// that takes longer than the timeout is killed with all that it started.
func (r *Runtime) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	c, err := r.mustCtr(ctx, req.ContainerId)
	if err != nil {
		return nil, err
	}
	if req.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(req.Timeout)*time.Second)
		defer cancel()
	}
	stdout, stderr := &capture{}, &capture{}
	code, err := r.exec(ctx, c, execution{cmd: req.Cmd, out: stdout, errOut: stderr})
	if errors.Is(err, context.DeadlineExceeded) && req.Timeout > 0 {
		return nil, cri.Errorf(codes.DeadlineExceeded, "command in container %s took longer than %d seconds", c.id, req.Timeout)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil, status.FromContextError(err).Err()
	}
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecSyncResponse{Stdout: stdout.buf, Stderr: stderr.buf, ExitCode: int32(code)}, nil
}

// capture keeps the first bytes and takes all.
type capture struct{ buf []byte }

func (c *capture) Write(p []byte) (int, error) {
	c.buf = append(c.buf, p[:min(len(p), maxExecOutput-len(c.buf))]...)
	return len(p), nil
}

// execution is a command and where its streams lead; nil is nowhere.
type execution struct {
	cmd         []string
	in          io.Reader
	out, errOut io.Writer
	tty         bool
	resize      func(func(stream.Size)) (stop func()) // of a terminal
}

// exec runs a command in a container until it has ended. When ctx ends before,
// the command is killed with all that it started.
func (r *Runtime) exec(ctx context.Context, c *ctr, x execution) (code int, err error) {
	if !c.state.Running {
		return 0, cri.Errorf(codes.FailedPrecondition, "container %s is %s, not running", c.id, c.state.Status)
	}
	created, err := r.api().ExecCreate(ctx, c.id, client.ExecCreateOptions{
		Cmd: x.cmd, TTY: x.tty, AttachStdin: x.in != nil, AttachStdout: x.out != nil, AttachStderr: x.errOut != nil,
		DetachKeys: detachKeys,
	})
	if err != nil {
		return 0, failed(err, "exec in container %s", c.id)
	}
	conn, err := r.api().ExecAttach(ctx, created.ID, client.ExecAttachOptions{TTY: x.tty})
	if err != nil {
		return 0, failed(err, "exec in container %s", c.id)
	}
	defer conn.Close()
	if x.tty {
		defer x.resize(func(s stream.Size) {
			r.api().ExecResize(ctx, created.ID, client.ExecResizeOptions{Height: uint(s.Height), Width: uint(s.Width)})
		})()
	}
	streams := connect(conn.HijackedResponse, x)
	p := r.await(ctx, created.ID, streams)
	if p.err != nil && ctx.Err() != nil {
		r.killExec(c, created.ID)
		conn.Close()
		<-streams.done // nobody writes to the caller's buffers any more
		return 0, ctx.Err()
	}
	if p.err != nil {
		return 0, failed(p.err, "exec in container %s", c.id)
	}
	streams.drain()
	conn.Close()
	<-streams.done
	return p.code, nil
}

// detachKeys replace ctrl-p ctrl-q, which programs in a terminal have use for:
// Docker knows no way to have none.
const detachKeys = "ctrl-@,ctrl-_,ctrl-^,ctrl-],ctrl-\\,ctrl-@,ctrl-_"

// plumbing copies between a connection to Docker and a client's streams.
type plumbing struct {
	done    chan struct{} // closed when all output was copied
	written chan struct{} // something was just written
}

// connect begins to copy. Input that ends is ended for the process.
func connect(conn client.HijackedResponse, x execution) *plumbing {
	p := &plumbing{done: make(chan struct{}), written: make(chan struct{}, 1)}
	go func() {
		defer close(p.done)
		out, errOut := noted{x.out, p.written}, noted{x.errOut, p.written}
		if x.tty {
			io.Copy(out, conn.Reader)
		} else {
			stdcopy.StdCopy(out, errOut, conn.Reader)
		}
	}()
	if x.in != nil {
		go func() { // ends with the client's stream or the connection
			io.Copy(conn.Conn, x.in)
			conn.CloseWrite()
		}()
	}
	return p
}

// noted tells of writes.
type noted struct {
	to      io.Writer
	written chan struct{}
}

func (n noted) Write(b []byte) (int, error) {
	notify(n.written)
	if n.to == nil {
		return len(b), nil
	}
	return n.to.Write(b)
}

// quiet is how long nothing must come after a process has ended until its
// output is taken for complete although somebody else holds it open.
const quiet = 200 * time.Millisecond

// drain waits until the output has ended or nothing comes any more.
func (p *plumbing) drain() {
	for {
		t := time.NewTimer(quiet)
		select {
		case <-p.done:
			t.Stop()
			return
		case <-p.written:
			t.Stop()
		case <-t.C:
			return
		}
	}
}

// ending is how an exec'd process ended.
type ending struct {
	code int
	err  error
}

// await waits for the end of an exec'd process. Docker tells of it only who
// asks; the kernel is asked first, where the process is known already.
func (r *Runtime) await(ctx context.Context, execID string, streams *plumbing) ending {
	wait := time.Millisecond
	closed := streams.done
	for {
		x, err := r.api().ExecInspect(ctx, execID, client.ExecInspectOptions{})
		if err != nil {
			return ending{err: err}
		}
		// Before its start it has no pid; neither has it if that fails, but
		// then its streams are closed.
		if !x.Running && (x.PID != 0 || closed == nil) {
			return ending{code: x.ExitCode}
		}
		if x.Running && x.PID != 0 && awaitDeath(ctx, x.PID) {
			wait = time.Millisecond
		}
		t := time.NewTimer(wait)
		select {
		case <-closed:
			closed, wait = nil, time.Millisecond
		case <-t.C:
			wait = min(2*wait, 50*time.Millisecond)
		case <-ctx.Done():
			t.Stop()
			return ending{err: ctx.Err()}
		}
		t.Stop()
	}
}

// awaitDeath returns when a process has ended, or ctx has. It is false if the
// process had ended before.
func awaitDeath(ctx context.Context, pid int) bool {
	f, err := sys.OpenPidfd(pid, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	const look = 100 * time.Millisecond // how often ctx is looked at
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}, int(look.Milliseconds()))
		if n > 0 {
			return true
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false
		}
	}
	return true
}

// killExec ends an exec'd process with all that it started, which Docker has no
// verb for.
func (r *Runtime) killExec(c *ctr, execID string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.life), killTimeout)
	defer cancel()
	for { // one that is about to start has no pid yet
		x, err := r.api().ExecInspect(ctx, execID, client.ExecInspectOptions{})
		if err != nil || !x.Running && x.PID != 0 {
			return
		}
		if x.PID != 0 {
			g, err := r.groupOf(c.state.Pid)
			if err == nil && g != nil {
				err = family.Kill(ctx, g, x.PID)
			}
			if err != nil {
				r.log.Warn("an exec'd process is left", "container", c.id, "pid", x.PID, "error", err)
			}
			return
		}
		if !pause(ctx, 10*time.Millisecond) {
			return
		}
	}
}
