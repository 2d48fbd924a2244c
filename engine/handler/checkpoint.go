package handler

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/oci/criu"
	"podstead/oci/launch"
	"podstead/supervisor"
	"podstead/sys"
)

// Dumper is a Handler that writes the state of running containers to files.
type Dumper interface {
	// Checkpoint writes CRIU's image files of a container, which goes on.
	Checkpoint(context.Context, Checkpoint) error
}

// Checkpointer is a Dumper that brings it back, too, and looks at what came of
// that before it runs.
type Checkpointer interface {
	Dumper
	// CreateRestored prepares a container that is to be restored, up to where
	// Restoring.Start goes on.
	CreateRestored(ctx context.Context, c Container, images string) (*Restoring, supervisor.Process, error)
}

// Checkpoint is what a handler needs to make one.
type Checkpoint struct {
	ID     string
	Spec   *specs.Spec
	Pid    int
	Stdio  []string // criu.Stdio of the process when it was created
	Freeze string   // directory of the container's freezer
	Images string   // an empty directory
	Work   string   // directory of the log
}

// Members are a container's processes.
type Members interface {
	Path() string
	Procs() ([]int, error)
	Kill(context.Context) error
}

var _ Checkpointer = (*Builtin)(nil)

// Checkpoint implements Checkpointer.
func (b *Builtin) Checkpoint(ctx context.Context, c Checkpoint) error {
	program, err := criu.Find()
	if err != nil {
		return err
	}
	o := criu.DumpOptions{Pid: c.Pid, LeaveRunning: true, FreezeCgroup: c.Freeze}
	if o.Images, err = os.Open(c.Images); err != nil {
		return err
	}
	defer o.Images.Close()
	if o.Work, err = os.Open(c.Work); err != nil {
		return err
	}
	defer o.Work.Close()
	o.FileLocks, o.OrphanPtsMaster = true, c.Spec.Process.Terminal
	o.TCPEstablished = true // or no server could be dumped; a restore closes them
	if err := o.DescribeDump(c.Spec, c.Stdio); err != nil {
		return err
	}
	return criu.Dump(ctx, program, o)
}

// Restoring is a container that was created to be restored and waits for Start.
type Restoring struct {
	supervisor *supervisor.Client
	id         string
	spec       *specs.Spec
	conn       *criu.Conn
	options    criu.RestoreOptions
}

// CreateRestored implements Checkpointer. CRIU is launched like a container's
// first process, waits like one, and executes at the start.
func (b *Builtin) CreateRestored(ctx context.Context, c Container, images string) (r *Restoring, p supervisor.Process, err error) {
	if c.Spec.Hooks != nil && !reflect.DeepEqual(*c.Spec.Hooks, specs.Hooks{}) {
		return nil, p, errors.New("hooks: a container with hooks, as CDI devices bring, cannot be restored")
	}
	program, err := criu.Find()
	if err != nil {
		return nil, p, err
	}
	at := filepath.Join(c.Bundle, "restore")
	if err := os.MkdirAll(at, 0o700); err != nil {
		return nil, p, err
	}
	o := b.options(c)
	restorer, err := launch.CompileRestore(c.Spec, o, launch.RestoreOptions{
		Dir: at, Path: program, Args: append([]string{"criu"}, criu.Args(launch.SocketArg)...), Env: criu.Env(),
	})
	if err != nil {
		return nil, p, err
	}
	r = &Restoring{supervisor: b.Supervisor, id: c.ID, spec: c.Spec}
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	conn, theirs, err := criu.Pair()
	if err != nil {
		return r, p, err
	}
	r.conn = conn
	files, err := restorer.Open(theirs)
	theirs.Close()
	if err != nil {
		return r, p, err
	}
	defer sys.CloseAll(files)
	if r.options.Images, err = os.Open(images); err != nil {
		return r, p, err
	}
	r.options.FileLocks, r.options.TCPClose = true, true
	r.options.OrphanPtsMaster = c.Spec.Process.Terminal
	if profile := c.Spec.Process.ApparmorProfile; profile != "" {
		r.options.LSMProfile = "apparmor:" + profile
	}
	if label := c.Spec.Process.SelinuxLabel; label != "" {
		r.options.LSMProfile, r.options.LSMMountContext = "selinux:"+label, c.Spec.Linux.MountLabel
	}
	if err := r.options.DescribeRestore(c.Spec, restorer, files[restorer.RootSlot]); err != nil {
		return r, p, err
	}
	p, _, err = b.Supervisor.Launch(ctx, supervisor.Launch{
		ID: c.ID, Program: restorer.Program, Files: files, Logged: true, Log: c.Log,
		Stdin: c.Stdin, StdinOnce: c.StdinOnce, LaterConsole: c.Spec.Process.Terminal,
	})
	if err != nil {
		return r, p, err
	}
	return r, p, nil
}

// Close gives up what Start needs.
func (r *Restoring) Close() error {
	var errs []error
	if r.conn != nil {
		errs = append(errs, r.conn.Close())
	}
	if r.options.Images != nil {
		errs = append(errs, r.options.Images.Close())
	}
	return errors.Join(errs...)
}

// Start has CRIU restore the container, looks at what it has made, and hands it
// to the supervisor before it runs. If it fails, what there is of it must be
// killed.
func (r *Restoring) Start(ctx context.Context, group Members) (p supervisor.Process, err error) {
	defer r.Close()
	restorer, err := r.supervisor.Start(ctx, r.id)
	if err != nil {
		return p, err
	}
	var console *os.File
	defer func() {
		if console != nil {
			console.Close()
		}
	}()
	pid := 0
	r.options.Notify = func(n criu.Notification) error {
		switch n.Script {
		case criu.OrphanPtsMaster:
			if n.File == nil || console != nil {
				return errors.New("criu sent no master of the terminal")
			}
			console = n.File
		case criu.PostRestore:
			pid = n.Pid
		case criu.PreResume:
			if p, err = r.beforeResume(ctx, pid, restorer.Pid, console, group); err != nil {
				// CRIU would go on.
				return errors.Join(err, group.Kill(ctx))
			}
		}
		return nil
	}
	if _, err := r.conn.Restore(ctx, r.options); err != nil {
		return p, err
	}
	if p.Pid == 0 {
		return p, errors.New("criu has restored without saying what")
	}
	return p, nil
}

func (r *Restoring) beforeResume(ctx context.Context, pid, restorer int, console *os.File, group Members) (p supervisor.Process, err error) {
	members, err := group.Procs()
	if err != nil {
		return p, err
	}
	check := criu.Restored{Spec: r.spec, Pid: pid, Members: members, Restorer: restorer, Cgroup: group.Path()}
	if err := check.Check(); err != nil {
		return p, err
	}
	if p, err = r.supervisor.Become(ctx, r.id, pid, console); err != nil {
		return p, fmt.Errorf("hand process %d to the supervisor: %w", pid, err)
	}
	return p, nil
}
