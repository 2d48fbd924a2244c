// Package shim stands for a container that a containerd shim runs: a process of
// its own, in the place of the container's under the supervisor, that lives as
// long as the container does, passes signals on and ends as it ends. So logs,
// exits and restarts are those of any other container, although the process that
// counts may be in a virtual machine.
//
//	supervisor ──▶ stand-in ──start──▶ shim ──▶ container
//	     ▲            │ ◀──ttrpc: Create, Start, Wait, Kill, Exec, Delete──▶ │
//	     └── pipes ───┴── /proc/STAND-IN/fd/1, which the shim writes to ─────┘
//
// The stand-in moves no bytes: the shim is told the supervisor's pipes as if
// they were its fifos. It is run by "podstead shim FILE"; FILE is a Task. The
// engine does not talk to shims. Nothing here survives the stand-in's death but
// the shim, which "delete" ends (Delete).
package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v2"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Task is what a stand-in stands for.
type Task struct {
	Shim   string // the program
	ID     string // of the container
	Bundle string
	// ConfigPath is the runtime's own configuration file, "" for none.
	ConfigPath string
	// ExecID and Process are those of an exec, in a container that runs; else the
	// container itself is made.
	ExecID  string
	Process json.RawMessage
	Stdin   bool
	// Log gets an entry that says why the process could not be started. Ready is
	// a fifo: a byte on it says that it was.
	Log, Ready string
}

// namespace is containerd's, under which shims keep what is ours.
const namespace = "podstead"

// Run is the life of a stand-in. It returns the exit code.
func Run(file string) int {
	var t Task
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &t)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	code, err := t.run(signals)
	if err == nil {
		return code
	}
	entry, _ := json.Marshal(map[string]string{"level": "error", "msg": err.Error()})
	if t.Log != "" {
		os.WriteFile(t.Log, append(entry, '\n'), 0o600)
	}
	t.ready(false)
	return 255
}

// ready tells who waits whether the process runs.
func (t *Task) ready(well bool) error {
	f, err := os.OpenFile(t.Ready, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if well {
		_, err = f.Write([]byte{1})
	}
	return err
}

// Await waits until the stand-in of a ready fifo has started its process.
func Await(fifo string) error {
	f, err := os.Open(fifo)
	if err != nil {
		return err
	}
	defer f.Close()
	if n, err := f.Read(make([]byte, 1)); n != 1 {
		return fmt.Errorf("the process was not started: %w", err)
	}
	return nil
}

func (t *Task) run(signals <-chan os.Signal) (code int, err error) {
	ctx := context.Background()
	c, err := t.connect(ctx)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if t.ExecID == "" {
		defer func() { err = errors.Join(err, c.end(ctx, t)) }()
		err = c.create(ctx, t)
	} else {
		err = c.exec(ctx, t)
	}
	if err != nil {
		return 0, err
	}
	if err := c.call(ctx, "Start", &task.StartRequest{ID: t.ID, ExecID: t.ExecID}, &task.StartResponse{}); err != nil {
		return 0, err
	}
	if err := t.ready(true); err != nil {
		return 0, err
	}
	return c.wait(ctx, t, signals)
}

// client talks to a shim.
type client struct {
	*ttrpc.Client
	service string
}

// bootstrap is what newer shims answer "start" with, instead of the address.
type bootstrap struct {
	Version  int    `json:"version"`
	Address  string `json:"address"`
	Protocol string `json:"protocol"`
}

// addressFile is where the shim's answer is kept in the bundle, for execs.
const addressFile = "shim"

// connect starts the container's shim, or finds that of a container which runs.
func (t *Task) connect(ctx context.Context) (*client, error) {
	path := filepath.Join(t.Bundle, addressFile)
	answer, err := os.ReadFile(path)
	if t.ExecID == "" {
		if err := t.drainLog(); err != nil {
			return nil, err
		}
		if answer, err = t.command(ctx, "start"); err == nil {
			err = os.WriteFile(path, answer, 0o600)
		}
	}
	if err != nil {
		return nil, err
	}
	return t.dial(answer)
}

// dial reaches a shim by what it has answered to "start".
func (t *Task) dial(answer []byte) (*client, error) {
	b := bootstrap{Version: 2, Protocol: "ttrpc", Address: strings.TrimSpace(string(answer))}
	if strings.HasPrefix(b.Address, "{") {
		if err := json.Unmarshal(answer, &b); err != nil {
			return nil, fmt.Errorf("%s start: %w: %q", t.Shim, err, answer)
		}
	}
	address, ok := strings.CutPrefix(b.Address, "unix://")
	if !ok || b.Protocol != "ttrpc" {
		return nil, fmt.Errorf("%s start: %q by %s: want unix:// by ttrpc", t.Shim, b.Address, b.Protocol)
	}
	conn, err := net.Dial("unix", address)
	if err != nil {
		return nil, err
	}
	return &client{ttrpc.NewClient(conn), fmt.Sprintf("containerd.task.v%d.Task", min(b.Version, 3))}, nil
}

// drainLog makes the fifo that a shim logs to, and reads it as long as the
// stand-in lives.
func (t *Task) drainLog() error {
	path := filepath.Join(t.Bundle, "log")
	os.Remove(path)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	go io.Copy(io.Discard, f)
	return nil
}

// killSignal asks a stand-in to kill its process, which SIGKILL would not.
const killSignal = 64

// Signal is what a stand-in is sent for a signal to its process.
func Signal(n int) int {
	if n == int(unix.SIGKILL) {
		return killSignal
	}
	return n
}

// commandTimeout bounds a call of the shim's command line.
const commandTimeout = 30 * time.Second

func (t *Task) command(ctx context.Context, verb string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	// It tells of events by a program if it has no other way; nobody listens.
	cmd := exec.CommandContext(ctx, t.Shim, "-namespace", namespace, "-publish-binary", "/bin/true",
		"-id", t.ID, "-bundle", t.Bundle, verb)
	cmd.Dir = t.Bundle
	cmd.WaitDelay = time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %.1000s", t.Shim, verb, err, stderr.String())
	}
	return out, nil
}

// Delete ends the shim of a container whose stand-in was killed, and what the
// container has left; of one that ended as it should there is nothing.
func Delete(ctx context.Context, t Task) error {
	path := filepath.Join(t.Bundle, addressFile)
	answer, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if c, err := t.dial(answer); err == nil { // else the shim is dead, too
		ctx, cancel := context.WithTimeout(ctx, commandTimeout)
		c.call(ctx, "Kill", &task.KillRequest{ID: t.ID, Signal: uint32(unix.SIGKILL), All: true}, &emptypb.Empty{})
		c.call(ctx, "Wait", &task.WaitRequest{ID: t.ID}, &task.WaitResponse{})
		c.call(ctx, "Delete", &task.DeleteRequest{ID: t.ID}, &task.DeleteResponse{})
		c.call(ctx, "Shutdown", &task.ShutdownRequest{ID: t.ID, Now: true}, &emptypb.Empty{})
		cancel()
		c.Close()
	}
	if _, err := t.command(ctx, "delete"); err != nil {
		return err
	}
	return os.Remove(path)
}

func (c *client) call(ctx context.Context, method string, req, resp proto.Message) error {
	ctx = ttrpc.WithMetadata(ctx, ttrpc.MD{"containerd-namespace-ttrpc": []string{namespace}})
	if err := c.Call(ctx, c.service, method, req, resp); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	return nil
}

// stdio are the stand-in's own descriptors, by names under which the shim can
// open them.
func (t *Task) stdio() (in, out, errOut string) {
	name := func(fd int) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd) }
	if t.Stdin {
		in = name(0)
	}
	return in, name(1), name(2)
}

func (c *client) create(ctx context.Context, t *Task) error {
	req := &task.CreateTaskRequest{ID: t.ID, Bundle: t.Bundle}
	req.Stdin, req.Stdout, req.Stderr = t.stdio()
	if t.ConfigPath != "" {
		value, err := proto.Marshal(&runtimeoptions.Options{ConfigPath: t.ConfigPath})
		if err != nil {
			return err
		}
		req.Options = &anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: value}
	}
	return c.call(ctx, "Create", req, &task.CreateTaskResponse{})
}

// processType is how shims know a process of the OCI specification.
const processType = "types.containerd.io/opencontainers/runtime-spec/1/Process"

func (c *client) exec(ctx context.Context, t *Task) error {
	req := &task.ExecProcessRequest{ID: t.ID, ExecID: t.ExecID, Spec: &anypb.Any{TypeUrl: processType, Value: t.Process}}
	req.Stdin, req.Stdout, req.Stderr = t.stdio()
	return c.call(ctx, "Exec", req, &emptypb.Empty{})
}

// wait passes signals on until the process ends.
func (c *client) wait(ctx context.Context, t *Task, signals <-chan os.Signal) (code int, err error) {
	var ended task.WaitResponse
	done := make(chan error, 1)
	go func() { done <- c.call(ctx, "Wait", &task.WaitRequest{ID: t.ID, ExecID: t.ExecID}, &ended) }()
	for {
		select {
		case s := <-signals:
			n := s.(syscall.Signal)
			if n == killSignal {
				n = unix.SIGKILL
			}
			if n != unix.SIGCHLD && n != unix.SIGURG && n != unix.SIGPIPE {
				c.call(ctx, "Kill", &task.KillRequest{ID: t.ID, ExecID: t.ExecID, Signal: uint32(n)}, &emptypb.Empty{})
			}
			continue
		case err = <-done:
		}
		if err != nil {
			return 0, err
		}
		// All of its output has been copied when this returns.
		err = c.call(ctx, "Delete", &task.DeleteRequest{ID: t.ID, ExecID: t.ExecID}, &task.DeleteResponse{})
		return int(ended.ExitStatus), err
	}
}

// end ends the shim.
func (c *client) end(ctx context.Context, t *Task) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	err := c.call(ctx, "Shutdown", &task.ShutdownRequest{ID: t.ID, Now: true}, &emptypb.Empty{})
	if err != nil && !errors.Is(err, ttrpc.ErrClosed) {
		return err
	}
	return os.Remove(filepath.Join(t.Bundle, addressFile)) // nothing is left of it
}
