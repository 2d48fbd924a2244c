// Package handler is what the engine plugs OCI runtimes into: one handler per
// RuntimeClass handler name. Builtin compiles a launch program and gives it to
// the supervisor; OCI has the supervisor run the command line of another
// runtime. A handler keeps no state of its own: what it started is known to the
// supervisor, which outlives the engine.
package handler

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/oci/launch"
	"podstead/oci/seccomp"
	"podstead/supervisor"
	"podstead/sys"
)

// Handler runs the processes of containers.
type Handler interface {
	// Create prepares a container. Where the process is there already, it waits
	// before its execve; else the Process is zero, and Start makes it.
	Create(context.Context, Container) (supervisor.Process, error)
	// Start lets a prepared container run. An error may come with a process: that
	// is to be killed, since something that belongs to its start has failed.
	Start(context.Context, Container) (supervisor.Process, error)
	// Exec runs a process in a running container. With Process.Terminal and no
	// Stdio it returns the pty's master.
	Exec(context.Context, Exec) (supervisor.Process, *os.File, error)
	// Signal sends a signal to a process of a container: to the first one, whose
	// id is the container's, or to an exec. One that has ended is
	// os.ErrProcessDone or os.ErrNotExist.
	Signal(ctx context.Context, c Container, id string, signal int) error
	// Delete takes away what the handler has of a container beside the process
	// that the supervisor knows, which it may kill. It asks for nothing to be
	// there, and can be repeated.
	Delete(context.Context, Container) error
	// Features tells what a client may ask of the handler.
	Features() Features
}

// Features of a handler, as CRI's Status reports them.
type Features struct {
	RecursiveReadOnlyMounts bool
	UserNamespaces          bool
}

// Container is what a handler needs to know of one. Of it, all but Create get
// what does not come from Create's request alone: neither Rootfs nor Annotations,
// and Spec if HasLateHooks tells so.
type Container struct {
	ID               string
	Spec             *specs.Spec
	Bundle           string          // directory of the container's own
	Rootfs           *launch.Overlay // mounted as the root; nil: Spec.Root.Path
	Terminal         bool
	Annotations      map[string]string // those that the runtime gets to see
	CgroupJoin       []string          // see launch.Options
	CgroupDir        string
	Log              supervisor.LogFile
	Stdin, StdinOnce bool
	PodDir           string // see Pod.Dir
	// OOMScoreAdj and Resources are what Start is told of what has changed since
	// Create, if there is no process yet.
	OOMScoreAdj *int
	Resources   *specs.LinuxResources
}

// Exec is a process to run in a container.
type Exec struct {
	ID         string         // "CONTAINER/EXEC"
	Spec       *specs.Spec    // of the container
	Bundle     string         // of the container
	PodDir     string         // see Pod.Dir
	Process    *specs.Process // that of Spec, with Args and Terminal of its own
	Pid        int            // of the container's first process
	StartTicks uint64
	CgroupJoin []string
	CgroupDir  string
	Stdio      launch.Stdio
	Last       *Execs // of the container; may be nil
}

// Builtin is the handler without a runtime binary.
type Builtin struct {
	Supervisor *supervisor.Client
	Supports   Features
	// Seed is the mount namespace that those of containers start from, see
	// launch.NewSeed; nil means the supervisor's.
	Seed *os.File

	mu      sync.Mutex
	filters map[*specs.LinuxSeccomp]*seccomp.Filter
}

// maxFilters bounds the compiled system call filters that are kept. Most
// containers share one profile, which costs more to compile than all the rest
// of a launch.
const maxFilters = 64

// filter compiles a profile, once as long as it is the same object.
func (b *Builtin) filter(s *specs.Spec) (*seccomp.Filter, error) {
	if s.Linux == nil || s.Linux.Seccomp == nil {
		return nil, nil
	}
	profile := s.Linux.Seccomp
	b.mu.Lock()
	f := b.filters[profile]
	b.mu.Unlock()
	if f != nil {
		return f, nil
	}
	f, err := seccomp.Compile(profile)
	if err != nil {
		return nil, fmt.Errorf("linux.seccomp%w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.filters == nil || len(b.filters) >= maxFilters {
		b.filters = map[*specs.LinuxSeccomp]*seccomp.Filter{}
	}
	b.filters[profile] = f
	return f, nil
}

var _ Handler = (*Builtin)(nil)

// Features implements Handler.
func (b *Builtin) Features() Features { return b.Supports }

// Create implements Handler.
func (b *Builtin) Create(ctx context.Context, c Container) (supervisor.Process, error) {
	filter, err := b.filter(c.Spec)
	if err != nil {
		return supervisor.Process{}, err
	}
	o := b.options(c)
	o.Filter = filter
	o.Hooks, o.NetDevices = true, true
	if err := errors.Join(checkHooks(c.Spec), checkNetDevices(c.Spec)); err != nil {
		return supervisor.Process{}, err
	}
	p, err := launch.Compile(c.Spec, o)
	if err != nil {
		return supervisor.Process{}, err
	}
	l := supervisor.Launch{ID: c.ID, Program: p, Logged: true, Log: c.Log, Stdin: c.Stdin, StdinOnce: c.StdinOnce}
	if waitsAtCreation(c.Spec) {
		return b.launchWithHooks(ctx, l, c)
	}
	proc, _, err := b.launch(ctx, l, nil)
	return proc, err
}

// Start implements Handler.
func (b *Builtin) Start(ctx context.Context, c Container) (supervisor.Process, error) {
	if c.Spec != nil && HasLateHooks(c.Spec) {
		return b.startWithHooks(ctx, c)
	}
	return b.Supervisor.Start(ctx, c.ID)
}

// Signal implements Handler.
func (b *Builtin) Signal(ctx context.Context, _ Container, id string, signal int) error {
	return b.Supervisor.Signal(ctx, id, signal)
}

// Delete implements Handler: the process is all there is.
func (b *Builtin) Delete(context.Context, Container) error { return nil }

// Pause runs a process that is pid 1 of a pid namespace and reaps in it. It
// serves the pods of all handlers.
func (b *Builtin) Pause(ctx context.Context, c Container) (supervisor.Process, error) {
	p, err := launch.CompilePause(c.Spec, b.options(c))
	if err != nil {
		return supervisor.Process{}, err
	}
	proc, _, err := b.launch(ctx, supervisor.Launch{ID: c.ID, Program: p, Start: true}, nil)
	return proc, err
}

// Exec implements Handler.
func (b *Builtin) Exec(ctx context.Context, x Exec) (supervisor.Process, *os.File, error) {
	p, err := x.Last.Program(&x, func() (*launch.Program, error) {
		filter, err := b.filter(x.Spec)
		if err != nil {
			return nil, err
		}
		return launch.CompileExec(x.Spec, x.Process, launch.ExecOptions{
			ID: path.Dir(x.ID), Pid: x.Pid, CgroupJoin: x.CgroupJoin, CgroupDir: x.CgroupDir, Filter: filter,
		})
	})
	if err != nil {
		return supervisor.Process{}, nil, err
	}
	// The namespaces are opened by pid; had that pid a new owner by then, its
	// start time tells.
	sameProcess := func() error {
		if t, err := sys.StartTime(x.Pid); err != nil || t != x.StartTicks {
			return fmt.Errorf("process %d: %w", x.Pid, os.ErrProcessDone)
		}
		return nil
	}
	return b.launch(ctx, supervisor.Launch{ID: x.ID, Program: p, Stdio: x.Stdio, Start: true, Once: true}, sameProcess)
}

// launch opens what the program names, checks it and hands all to the
// supervisor.
func (b *Builtin) launch(ctx context.Context, l supervisor.Launch, check func() error) (supervisor.Process, *os.File, error) {
	files, err := l.Program.Open()
	if err != nil && check != nil {
		err = errors.Join(err, check()) // what it has is gone with it
	}
	if err != nil {
		return supervisor.Process{}, nil, err
	}
	defer sys.CloseAll(files)
	if check != nil {
		if err := check(); err != nil {
			return supervisor.Process{}, nil, err
		}
	}
	l.Files = files
	return b.Supervisor.Launch(ctx, l)
}

func (b *Builtin) options(c Container) launch.Options {
	o := launch.Options{
		ID: c.ID, Bundle: c.Bundle, Rootfs: c.Rootfs,
		CgroupJoin: c.CgroupJoin, CgroupDir: c.CgroupDir,
	}
	if b.Seed != nil {
		o.MountNamespace = fmt.Sprintf("/proc/self/fd/%d", b.Seed.Fd())
	}
	return o
}
