package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/oci/launch"
)

// maxExecOutput is how much of each output ExecSync keeps; the rest is read and
// dropped, so that neither memory nor the process suffers (CVE-2022-1708).
const maxExecOutput = 16 << 20

// ExecSync runs a command in a container and returns what it wrote. A command
// that takes longer than the timeout is killed with all that it started, and
// the error is DeadlineExceeded. Output of processes that outlive the command
// is not waited for.
func (e *Engine) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	c, err := e.mustContainer(req.ContainerId)
	if err != nil {
		return nil, err
	}
	if req.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(req.Timeout)*time.Second)
		defer cancel()
	}
	stdout, err := newCapture()
	if err != nil {
		return nil, err
	}
	defer stdout.close()
	stderr, err := newCapture()
	if err != nil {
		return nil, err
	}
	defer stderr.close()
	x, err := e.exec(ctx, c, req.Cmd, false, launch.Stdio{Stdout: stdout.w, Stderr: stderr.w})
	if err != nil {
		return nil, err
	}
	stdout.begin()
	stderr.begin()
	code, err := x.wait(ctx)
	if err != nil {
		x.end() // what was started is dead when the caller hears of it
	} else {
		e.worker.Go(x.end) // the answer need not wait for the supervisor to forget
	}
	if errors.Is(err, context.DeadlineExceeded) && req.Timeout > 0 {
		return nil, cri.Errorf(codes.DeadlineExceeded, "command in container %s took longer than %d seconds", c.id, req.Timeout)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil, status.FromContextError(err).Err()
	}
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecSyncResponse{Stdout: stdout.end(), Stderr: stderr.end(), ExitCode: int32(code)}, nil
}

// capture collects one output of a process.
type capture struct {
	r, w *os.File
	buf  bytes.Buffer
	done chan struct{} // closed when the reader ended; nil before begin
}

func newCapture() (*capture, error) {
	r, w, err := pipe(true)
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	return &capture{r: r, w: w}, nil
}

// begin reads until the last writer is gone or end is called. The writer's end
// is the process's alone from here on.
func (c *capture) begin() {
	c.w.Close()
	c.done = make(chan struct{})
	go func() {
		defer close(c.done)
		io.Copy((*capturedOutput)(c), c.r)
	}()
}

// end returns what is written by now: others who hold the pipe open are not
// waited for.
func (c *capture) end() []byte {
	c.stop()
	c.drain()
	return c.buf.Bytes()
}

// stop ends the reader.
func (c *capture) stop() {
	if c.done != nil {
		c.r.SetReadDeadline(time.Unix(1, 0))
		<-c.done
	}
}

// drain reads what is in the pipe without waiting. Its capacity bounds the
// loop even if somebody keeps writing.
func (c *capture) drain() {
	conn, err := c.r.SyscallConn()
	if err != nil {
		return
	}
	conn.Control(func(fd uintptr) {
		b := make([]byte, 64<<10)
		for left := maxPipe; left > 0; {
			n, err := unix.Read(int(fd), b)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || n == 0 {
				return
			}
			(*capturedOutput)(c).Write(b[:n])
			left -= n
		}
	})
}

// maxPipe is the largest pipe that a process without privileges can make.
const maxPipe = 1 << 20

func (c *capture) close() {
	c.w.Close()
	c.stop()
	c.r.Close()
}

// capturedOutput keeps the first bytes and takes all.
type capturedOutput capture

func (c *capturedOutput) Write(p []byte) (int, error) {
	c.buf.Write(p[:min(len(p), maxExecOutput-c.buf.Len())])
	return len(p), nil
}
