package hook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/oci/launch"
	"podstead/sys"
)

// Inside runs hooks in the namespaces that a process has. In the state that they
// get, the pid is that of the process's own pid namespace.
func Inside(ctx context.Context, spec *specs.Spec, kind string, hooks []specs.Hook, pid int, state specs.State) error {
	state.Pid = pidInside(pid)
	for i, h := range hooks {
		if out, err := runInside(ctx, spec, h, pid, state); err != nil {
			return Error(kind, i, h, err, out)
		}
	}
	return nil
}

// pidInside is the pid of a process in its own pid namespace.
func pidInside(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return pid
	}
	for line := range strings.Lines(string(b)) {
		if pids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			f := strings.Fields(pids)
			if n, err := strconv.Atoi(f[len(f)-1]); err == nil {
				return n
			}
		}
	}
	return pid
}

func runInside(ctx context.Context, spec *specs.Spec, h specs.Hook, pid int, state specs.State) (output []byte, err error) {
	input, ctx, cancel, err := prepare(ctx, h, state)
	if err != nil {
		return nil, err
	}
	defer cancel()
	p, err := launch.CompileHook(spec, h.Path, h, launch.ExecOptions{ID: state.ID, Pid: pid, Unprivileged: os.Geteuid() != 0})
	if err != nil {
		return nil, err
	}
	stdin, feed, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer feed.Close()
	defer stdin.Close()
	drain, stdout, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer drain.Close()
	defer stdout.Close()
	files, err := p.Open()
	if err != nil {
		return nil, err
	}
	child, err := launch.Fork(p, files, launch.Stdio{Stdin: stdin, Stdout: stdout, Stderr: stdout})
	sys.CloseAll(files)
	if err != nil {
		return nil, err
	}
	defer child.Pidfd.Close()
	stdin.Close()
	stdout.Close()
	return followHook(ctx, child, feed, drain, input)
}

// followHook lets a prepared hook run, gives it the state and waits for its
// end, which comes with the end of ctx at the latest.
func followHook(ctx context.Context, child *launch.Child, feed, drain *os.File, input []byte) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() {
		_ = unix.PidfdSendSignal(int(child.Pidfd.Fd()), unix.SIGKILL, nil, 0)
	})
	defer stop()
	startErr := child.Start()
	go func() {
		_, _ = feed.Write(input) // a hook need not read it
		feed.Close()
	}()
	var out limitedBuffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(&out, drain)
	}()
	var status unix.WaitStatus
	var waitErr error
	for {
		if _, waitErr = unix.Wait4(child.Pid, &status, unix.WALL, nil); waitErr != unix.EINTR {
			break
		}
	}
	select {
	case <-read:
	case <-time.After(time.Second): // something else keeps the output open
		drain.Close()
		<-read
	}
	switch {
	case startErr != nil:
		return nil, startErr
	case waitErr != nil:
		return nil, fmt.Errorf("wait for process %d: %w", child.Pid, waitErr)
	case ctx.Err() != nil:
		return out.Bytes(), fmt.Errorf("timed out: %w", ctx.Err())
	case status.Signaled():
		return out.Bytes(), fmt.Errorf("killed by signal %v", status.Signal())
	case status.ExitStatus() != 0:
		return out.Bytes(), errors.New("exit status " + strconv.Itoa(status.ExitStatus()))
	}
	return out.Bytes(), nil
}
