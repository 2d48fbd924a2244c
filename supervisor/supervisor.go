// Package supervisor is the parent of every container: it launches them, owns
// their stdio, writes their logs, reaps them and remembers how they ended, and
// keeps sockets and descriptors for the engine, which may be killed and
// restarted at any moment. This file has what both sides share; client.go is
// the engine's side, the loop itself is run by cmd/podstead-supervisor.
//
// It links no grpc, protobuf, net/http or Kubernetes module (arch_test.go), so
// that it stays small: every page it maps is copied at each fork.
package supervisor

import (
	"context"
	"net"
	"os"
	"time"

	"podstead/oci/launch"
)

// LogFile says where and how a container's output is written: CRI format,
// "<RFC3339Nano> stdout|stderr F|P <line>". Path empty means no log.
type LogFile struct {
	Path     string
	MaxBytes int64 // rotate before a file exceeds this; 0: never
	MaxFiles int   // kept files, the live one included; ≥ 2 if MaxBytes is set
}

// Launch describes a process to be launched.
type Launch struct {
	// ID names the process for all later calls: a container ID, or
	// "CONTAINER/EXEC" for an exec'd process.
	ID      string
	Program *launch.Program
	Files   []*os.File // of Program.Open; the caller keeps its copies
	// Either Log (the supervisor makes pipes or keeps the pty, writes the log
	// and lets clients attach) or Stdio (descriptors passed through).
	Log   LogFile
	Stdio launch.Stdio
	// Stdin keeps a stdin pipe open for attach; StdinOnce closes it when the
	// first attached client goes.
	Stdin, StdinOnce bool
	// Start runs the process at once; otherwise it waits for Client.Start.
	Start bool
}

// State of a process.
type State string

// The states a process goes through, in order.
const (
	Created State = "created" // prepared, waits for Start
	Running State = "running"
	Exited  State = "exited"
)

// Process is what the supervisor knows of a process.
type Process struct {
	ID         string
	State      State
	Pid        int
	StartTicks uint64 // see sys.StartTime
	StartedAt  time.Time
	ExitedAt   time.Time
	// ExitCode is the exit status, 128+N for signal N, and -1 if the kernel
	// could not tell (a supervisor was killed in between).
	ExitCode int
	// Console is true if the process has a pty.
	Console bool
}

// Event reports that a process exited, after its last output was logged.
type Event struct {
	Process Process
}

// Streams are the ends an attached client brings; nil ones are not attached.
type Streams struct {
	Stdin, Stdout, Stderr *os.File
}

// Client talks to the supervisor of a run directory. Safe for concurrent use.
type Client struct{}

// Connect reaches the supervisor that listens in runDir.
func Connect(ctx context.Context, runDir string) (*Client, error) { panic("not yet") }

// Launch starts a process; see Launch. It returns an error that names the
// failed step of the launch program, and then nothing of it is left.
// With a pty and Stdio (no Log), console is the pty's master.
func (c *Client) Launch(ctx context.Context, l Launch) (p Process, console *os.File, err error) {
	panic("not yet")
}

// Start releases a created process and returns when its image runs.
func (c *Client) Start(ctx context.Context, id string) (Process, error) { panic("not yet") }

// Signal sends a signal to the process (not to its children). A process that
// has exited is os.ErrProcessDone, an unknown one os.ErrNotExist; so it is for all calls.
func (c *Client) Signal(ctx context.Context, id string, signal int) error { panic("not yet") }

// List returns all processes, exited ones that were not forgotten included.
func (c *Client) List(ctx context.Context) ([]Process, error) { panic("not yet") }

// Get returns one process.
func (c *Client) Get(ctx context.Context, id string) (Process, error) { panic("not yet") }

// Forget drops the record of an exited process; unknown ones are no error.
func (c *Client) Forget(ctx context.Context, id string) error { panic("not yet") }

// Events delivers every exit from now on, in order, until ctx or the
// connection ends; then the channel is closed. Who lists after Events returned
// misses nothing.
func (c *Client) Events(ctx context.Context) (<-chan Event, error) { panic("not yet") }

// Attach connects streams to a logged process; output that follows is copied
// to them until the process ends, the peer closes or ctx ends. It returns then.
func (c *Client) Attach(ctx context.Context, id string, s Streams) error { panic("not yet") }

// Resize sets the window of a pty.
func (c *Client) Resize(ctx context.Context, id string, width, height uint16) error {
	panic("not yet")
}

// ReopenLog opens the log's path anew, for a rotation by rename. On an error
// the old file goes on and no new one appears.
func (c *Client) ReopenLog(ctx context.Context, id string) error { panic("not yet") }

// Store keeps descriptors under a name until Drop, across engine restarts.
func (c *Client) Store(ctx context.Context, name string, files ...*os.File) error { panic("not yet") }

// Take returns copies of stored descriptors, os.ErrNotExist if there are none.
func (c *Client) Take(ctx context.Context, name string) ([]*os.File, error) { panic("not yet") }

// Drop closes stored descriptors.
func (c *Client) Drop(ctx context.Context, name string) error { panic("not yet") }

// Listen returns the listener stored under name, or makes it and stores it, so
// that clients that connect while no engine runs wait instead of failing. A
// unix socket is made with mode 0600; network is "unix" or "tcp".
func (c *Client) Listen(ctx context.Context, name, network, address string) (net.Listener, error) {
	panic("not yet")
}

// Close ends the connection; the supervisor goes on.
func (c *Client) Close() error { panic("not yet") }
