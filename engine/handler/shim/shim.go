// Package shim stands for a container that a containerd shim runs: a process of
// its own, in the place of the container's under the supervisor, that lives as
// long as the container does and ends as it ends. So logs,
// exits and restarts are those of any other container, although the process that
// counts may be in a virtual machine. A pod has a stand-in, too, for its sandbox
// container, which does nothing: that one starts and ends the shim, which is the
// whole pod's, and takes the events that it sends.
//
//	supervisor ──▶ pod's stand-in ──start, delete──▶ shim ──▶ sandbox
//	     │            ▲ events ◀───────ttrpc──────────┤
//	     ├──────▶ container's stand-in ──ttrpc──▶     ├─────▶ container
//	     │            │ Create, Start, Exec, Wait,    │
//	     │            │ ResizePty, CloseIO, Delete    │
//	     └─ pipes, pty ── /proc/STAND-IN/fd/1 ────────┘ which it writes to
//
// The stand-in moves no output: the shim is told the supervisor's pipes as if
// they were its fifos. It is run by "podstead shim FILE"; FILE is a Task. The
// engine talks to shims to send signals and to change limits. A stand-in's death is the end of what it stands for: End sees to that.
//
//	BUNDLE/shim    of a pod: how its shim is reached, as long as there is one
//	BUNDLE/task    of a container: its shim knows it; the number of its process
//	BUNDLE/oom     of a container: it ran out of memory
package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	task "github.com/containerd/containerd/api/runtime/task/v2"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Task is what a stand-in stands for.
type Task struct {
	Shim   string // the program
	ID     string // of the container, or the pod
	Bundle string
	// Pod is the bundle of the pod that a container is in, whose shim it gets;
	// empty: this is the pod.
	Pod string
	// ConfigPath is the runtime's own configuration file, "" for none.
	ConfigPath string
	// ExecID and Process are those of an exec, in a container that runs; else the
	// container itself is made.
	ExecID  string
	Process json.RawMessage
	Stdin   bool
	// Console is a socket that gets the master of the process's terminal; empty:
	// it has none.
	Console string
	// Log gets an entry that says why the process could not be started. Ready is
	// a fifo: a byte on it says that it was.
	Log, Ready string
	// Events is the short path of a socket, for a pod: its shim sends events there.
	Events string
}

// The files in bundles.
const (
	addressFile = "shim"
	taskFile    = "task"
	oomFile     = "oom"
)

func (t *Task) isPod() bool             { return t.Pod == "" }
func (t *Task) file(name string) string { return filepath.Join(t.Bundle, name) }

// podBundle is where the shim's address is.
func (t *Task) podBundle() string {
	if t.isPod() {
		return t.Bundle
	}
	return t.Pod
}

// failed is the exit code of a stand-in that could not do its work.
const failed = 255

// Run is the life of a stand-in. It returns the exit code.
func Run(file string) int {
	var t Task
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &t)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return failed
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	code, started, err := t.run(signals)
	if err == nil {
		return code
	}
	if t.Log != "" {
		entry, _ := json.Marshal(map[string]string{"level": "error", "msg": err.Error()})
		os.WriteFile(t.Log, append(entry, '\n'), 0o600)
	}
	if started {
		return code
	}
	t.ready(false)
	return failed
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

func (t *Task) run(signals <-chan os.Signal) (code int, started bool, err error) {
	ctx := context.Background()
	io, err := t.openStdio()
	if err != nil {
		return 0, false, err
	}
	c, err := t.reach(ctx)
	if err != nil {
		return 0, false, err
	}
	defer c.Close()
	if t.isPod() {
		defer func() { err = errors.Join(err, c.shutdown(ctx, t)) }()
	}
	if err := c.begin(ctx, t, io); err != nil {
		return 0, false, err
	}
	if err := t.ready(true); err != nil {
		return 0, false, errors.Join(err, c.undo(ctx, t))
	}
	go io.feedStdin(ctx, c, t)
	code, err = c.wait(ctx, t, signals, io)
	return code, true, err
}

// reach starts the pod's shim, or finds it.
func (t *Task) reach(ctx context.Context) (*client, error) {
	if !t.isPod() {
		a, err := readAddress(t.Pod)
		if err != nil {
			return nil, fmt.Errorf("the pod's shim: %w", err)
		}
		return a.dial()
	}
	if err := serveEvents(t.Events); err != nil {
		return nil, err
	}
	a, err := t.start(ctx)
	if err != nil {
		os.Remove(t.Events)
		return nil, err
	}
	return a.dial()
}

// begin makes the process and starts it; if that fails nothing is left of it.
func (c *client) begin(ctx context.Context, t *Task, io *stdio) (err error) {
	if t.ExecID == "" && !t.isPod() {
		if err := os.WriteFile(t.file(taskFile), nil, 0o600); err != nil {
			return err
		}
	}
	if t.ExecID != "" {
		err = c.exec(ctx, t, io)
	} else {
		err = c.create(ctx, t, io)
	}
	if err != nil {
		if t.ExecID == "" {
			err = errors.Join(err, removeFile(t.file(taskFile)))
		}
		return err
	}
	var started task.StartResponse
	err = c.call(ctx, "Start", &task.StartRequest{ID: t.ID, ExecID: t.ExecID}, &started)
	if err == nil && t.ExecID == "" && !t.isPod() {
		err = os.WriteFile(t.file(taskFile), strconv.AppendUint(nil, uint64(started.Pid), 10), 0o600)
	}
	if err != nil {
		return errors.Join(err, c.undo(ctx, t))
	}
	return nil
}

// undo kills and deletes a process whose start has failed.
func (c *client) undo(ctx context.Context, t *Task) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	c.call(ctx, "Kill", &task.KillRequest{ID: t.ID, ExecID: t.ExecID, Signal: uint32(unix.SIGKILL)}, &emptypb.Empty{})
	err := c.call(ctx, "Delete", &task.DeleteRequest{ID: t.ID, ExecID: t.ExecID}, &task.DeleteResponse{})
	if err == nil && t.ExecID == "" {
		err = removeFile(t.file(taskFile))
	}
	return err
}

// wait passes sizes of the terminal, and signals that come to the stand-in, on
// until the process ends.
func (c *client) wait(ctx context.Context, t *Task, signals <-chan os.Signal, io *stdio) (code int, err error) {
	var ended task.WaitResponse
	done := make(chan error, 1)
	go func() { done <- c.call(ctx, "Wait", &task.WaitRequest{ID: t.ID, ExecID: t.ExecID}, &ended) }()
	io.resize(ctx, c, t)
	for {
		select {
		case s := <-signals:
			c.pass(ctx, t, s.(syscall.Signal), io)
			continue
		case err = <-done:
		}
		if err != nil { // the shim is gone
			return t.bury(ctx)
		}
		ofContainer := t.ExecID == "" && !t.isPod()
		if ofContainer {
			t.noteMemory(ctx) // before its group is gone
		}
		// All of its output has been copied when this returns.
		err = c.call(ctx, "Delete", &task.DeleteRequest{ID: t.ID, ExecID: t.ExecID}, &task.DeleteResponse{})
		if err == nil && ofContainer {
			err = removeFile(t.file(taskFile))
		}
		return int(ended.ExitStatus), err
	}
}

// pass gives a signal of the stand-in's to its process.
func (c *client) pass(ctx context.Context, t *Task, n syscall.Signal, io *stdio) {
	switch n {
	case unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE:
		return
	case unix.SIGWINCH:
		if io.tty != nil {
			io.resize(ctx, c, t)
			return
		}
	}
	c.call(ctx, "Kill", &task.KillRequest{ID: t.ID, ExecID: t.ExecID, Signal: uint32(n)}, &emptypb.Empty{})
}

// bury takes away what a process whose shim has died has left, and returns the
// exit code that the shim's program says.
func (t *Task) bury(ctx context.Context) (code int, err error) {
	if t.ExecID != "" {
		return exitKilled, nil // it ends with its container
	}
	if code, err = t.deleteByCommand(ctx); err == nil {
		err = removeFile(t.file(taskFile))
	}
	return code, err
}

// exitKilled is the exit code of what was killed.
const exitKilled = 128 + int(unix.SIGKILL)

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
