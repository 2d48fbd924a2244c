// Package supervisor is the parent of every container: it launches them, owns
// their stdio, writes their logs, reaps them and remembers how they ended, and
// keeps sockets and descriptors for the engine, which may be killed and
// restarted at any moment. This package is the client's side, for the engine
// and for cmd/podstead; the supervisor itself is supervisor/daemon, run by
// cmd/podstead-supervisor, and internal/protocol is what they say to each
// other.
//
// What survives:
//
//   - The engine is killed: everything. Logs go on, exits are remembered with
//     their times, listeners and stored descriptors stay.
//   - The supervisor is upgraded (podstead-supervisor upgrade): everything, in
//     the same process.
//   - The supervisor is killed: containers go on, and wait in a write when
//     their pipe is full. The next supervisor, which Ensure starts, takes the
//     pipes back. A Client of Ensure that lives on returns what only copies of
//     descriptors can keep: exit codes of those that ended meanwhile, ptys,
//     stored descriptors, listeners. Lost are what was read and not yet
//     written (64 KiB at most, and a line whose end had not come), attachments, inputs with StdinOnce, processes that waited for their
//     start, and, without such a Client, those exit codes (-1) and ptys.
//
// It links no grpc, protobuf, net/http or Kubernetes module (arch_test.go), so
// that it stays small: every page it maps is copied at each fork.
package supervisor

import (
	"io"
	"os"
	"time"

	"podstead/oci/launch"
	"podstead/supervisor/internal/protocol"
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
	// Command makes the process in place of Program. It has run to its end, and
	// the process is started, when Launch returns.
	Command *CommandLine
	// With Logged the supervisor makes the stdio, pipes or a pty: it writes the
	// log (if Log.Path is set; its directory must exist) and lets clients
	// attach. Otherwise Stdio is passed through, and a pty goes to the caller.
	// Log.Path alone implies Logged.
	Logged bool
	Log    LogFile
	Stdio  launch.Stdio
	// Stdin keeps a stdin pipe open for attach; StdinOnce closes it when the
	// first attached client goes.
	Stdin, StdinOnce bool
	// Start runs the process at once; otherwise it waits for Client.Start.
	Start bool
	// Hooks is one end of a seqpacket pair of sockets, for a program that stops
	// at launch.PointCreated. At that point the process's pid comes out of the
	// other end, as a decimal number, and the launch waits for an answer: nothing
	// but HooksDone lets it go on, anything else is why it fails.
	Hooks *os.File
	// Once drops the process at the supervisor when its exit was told to a client
	// that follows Events: nobody has to Forget it. If there is none at that
	// moment, it stays. With Start, and without a log, Launch may not be answered
	// before the process has run for some milliseconds: one that has ended by then
	// is Exited in the answer, and Events of the same Client do not tell of it.
	Once bool
	// LaterConsole tells that Client.Become will bring a pty: until then there
	// are no stdio.
	LaterConsole bool
}

// HooksDone is the answer of who has run a launch's hooks.
const HooksDone = protocol.HooksDone

// CommandLine is somebody else's way to make a process, such as an OCI runtime's
// command line:
//
//	Run, with the process's stdio ──▶ PidFile [, Console] ──▶ Then ──▶ launched
//
// Programs are absolute paths. With PidFile empty, Run is the process. To
// Console, the path of a socket that the supervisor makes, Run sends the master
// of the process's pty. Timeout bounds Run and Then, each; a failure of them is
// the Launch's, and the process, if there is one, is killed.
type CommandLine protocol.Command

// State of a process.
type State = protocol.State

// The states a process goes through, in order.
const (
	Launching State = "launching" // only List tells of it
	Created   State = "created"   // prepared, waits for Start
	Running   State = "running"
	Exited    State = "exited"
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
	// LostOutput is how many bytes of output could not be logged (disk full).
	LostOutput int64
	// Warnings name the steps of the launch that were passed over, such as an
	// oom_score_adj that needs more privilege than there is.
	Warnings []string
}

// Event reports that a process exited, after its last output was logged.
type Event struct {
	Process Process
}

// Streams are what an attached client brings; nil ones are not attached.
type Streams struct {
	// Stdin is read until its end, an error, or the end of Attach; one Read may
	// still be under way when Attach returns.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}
