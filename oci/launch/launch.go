// Package launch starts containers: it compiles an OCI runtime specification
// into a launch program, a flat list of raw system calls with arguments laid
// out in advance, descriptor slots and a label for errors, and executes it in
// a forked child without an intermediate program image and without cgo.
//
//	Compile (pure)  →  Program.Open (opens what the slots name)  →  Fork  →  Child.Start
//
// Compile and Open run in the engine or the OCI command line; Fork and
// Child.* run in the supervisor, which gets the encoded program and the open
// descriptors. Nothing here survives a crash or has to: a child that waits for
// its start ends when its forker does.
package launch

import (
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Options is what Compile needs beyond the specification.
type Options struct {
	// ID names the container in error texts.
	ID string
	// Bundle is the directory that relative paths of the specification refer to.
	Bundle string
	// Rootfs, if set, is mounted as root in place of Spec.Root.Path.
	Rootfs *Overlay
	// CgroupJoin are the files that the child writes "0" to in order to join its
	// cgroup (cgroup v1: one tasks file per hierarchy), and CgroupDir, if not
	// empty, a cgroup v2 directory to be born in (CLONE_INTO_CGROUP).
	CgroupJoin []string
	CgroupDir  string
}

// Overlay describes an overlay mount: Lower directories from top to bottom, and
// Upper and Work for writes; with Upper empty the mount is read-only.
type Overlay struct {
	Lower       []string
	Upper, Work string
}

// Program is a compiled launch: pure data, encodable, printable.
type Program struct {
	// Fields are private to the package.
	ops []byte
}

// Compile translates a validated OCI specification. It touches nothing; an
// error names the field of the specification, e.g. "process.rlimits[2].type".
// A property that is not supported is an error, never ignored.
func Compile(spec *specs.Spec, opt Options) (*Program, error) { panic("not yet") }

// ExecOptions says where CompileExec's process runs.
type ExecOptions struct {
	ID string
	// Pid is a process in the target container, whose namespaces, root and
	// user namespace are joined.
	Pid        int
	CgroupJoin []string
	CgroupDir  string
}

// CompileExec translates a process that joins a running container. spec is the
// container's own specification (seccomp, masked defaults), proc the process.
func CompileExec(spec *specs.Spec, proc *specs.Process, opt ExecOptions) (*Program, error) {
	panic("not yet")
}

// CompilePause returns the program of a pod's pid-1 process in a new pid
// namespace: it reaps orphans and does nothing else.
func CompilePause(spec *specs.Spec, opt Options) (*Program, error) { panic("not yet") }

// Open opens the descriptors that the program's slots name (namespaces, cgroup
// files, bind sources, the root mount), in slot order. On an error none stays open.
func (p *Program) Open() ([]*os.File, error) { panic("not yet") }

// Terminal tells whether the child makes a pty (then Child.Console is set).
func (p *Program) Terminal() bool { panic("not yet") }

// String prints the program, one call a line; golden files hold it.
func (p *Program) String() string { panic("not yet") }

// MarshalBinary and UnmarshalBinary encode the program for the supervisor.
func (p *Program) MarshalBinary() ([]byte, error) { panic("not yet") }

// UnmarshalBinary decodes and checks a program: it must never crash or execute
// anything out of bounds, whatever the bytes are.
func (p *Program) UnmarshalBinary(b []byte) error { panic("not yet") }

// Stdio are the child's descriptors 0, 1 and 2; nil means /dev/null. With a
// terminal they must be nil.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File
}

// Child is a forked process that executes a program.
type Child struct {
	Pid       int      // in the forker's pid namespace
	Pidfd     *os.File // owned by the caller of Fork
	Console   *os.File // pty master or nil; owned by the caller of Fork
	StartTime uint64   // clock ticks since boot, see sys.StartTime
}

// Fork starts a child and waits until it has executed everything up to the
// wait for its start (at most 'timeout' of Program), or has failed. files are
// those of Open; Fork does not close them. A failed child is reaped and its
// error names the step: "mount /data: permission denied".
func Fork(p *Program, files []*os.File, stdio Stdio) (*Child, error) { panic("not yet") }

// Start lets the child execute the rest, execve last, and returns when the new
// image runs or with the error of the failed step; after an error the child
// exits with status 128 and is the caller's to reap.
func (c *Child) Start() error { panic("not yet") }
