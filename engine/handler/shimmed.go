package handler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/cgroup"
	"podstead/engine/handler/shim"
	"podstead/oci/launch"
	"podstead/supervisor"
)

// Pods is a Handler that has something of its own for each pod, which its
// containers are in: a virtual machine, or at least a process.
type Pods interface {
	Handler
	// RunPod makes it. Its process has the ID PodProcess; it ends with that.
	RunPod(context.Context, Pod) (supervisor.Process, error)
	// RemovePod ends it when all of the containers have ended. It asks for
	// nothing to be there, and can be repeated.
	RemovePod(context.Context, Pod) error
	// Ended is told of the end of each container's process: what it stood for
	// ends, too, if it does not know that yet.
	Ended(context.Context, Container) error
	// OOMKilled tells whether a container that ended ran out of memory.
	OOMKilled(Container) bool
	// Stats tells what a container uses whose processes are in no cgroup of this
	// host's.
	Stats(context.Context, Container) (cgroup.Stats, error)
	// Pid is what the handler calls the number of the container's first process, 0
	// if it does not know it. It may be that of a virtual machine.
	Pid(Container) int
	// Update changes the limits of a container that runs.
	Update(context.Context, Container) error
}

// Pod is what a handler needs to know of one. Of it RemovePod gets neither Spec
// nor Annotations.
type Pod struct {
	ID          string
	Dir         string // of the pod's own; its last element is ID
	Spec        *specs.Spec
	Annotations map[string]string
}

// podProcess is the ending of the ID of a pod's process.
const podProcess = "/shim"

// PodProcess is what the supervisor knows a pod's process by.
func PodProcess(pod string) string { return pod + podProcess }

// PodOfProcess returns the pod whose process has the ID, if it is one.
func PodOfProcess(id string) (pod string, ok bool) { return strings.CutSuffix(id, podProcess) }

// Shim has a containerd shim run containers, by protocol v2 or v3. For each
// pod, container and exec there is a stand-in under the supervisor, see package
// shim.
// Init must be called.
type Shim struct {
	OCI               // bundle and specification are as for a command line
	Self       string // our own program, which is the stand-in
	ConfigPath string // the runtime's own
}

var (
	_ Pods     = (*Shim)(nil)
	_ Inquirer = (*Shim)(nil)
)

// Init makes the handler ready; it returns it.
func (h *Shim) Init() *Shim {
	h.AllLimits = true
	h.ask = func(ctx context.Context) ([]byte, error) {
		path, err := h.program()
		if err != nil {
			return nil, err
		}
		return shim.Features(ctx, shim.Task{Shim: path, ConfigPath: h.ConfigPath})
	}
	return h
}

// RunPod implements Pods.
func (h *Shim) RunPod(ctx context.Context, p Pod) (supervisor.Process, error) {
	b := bundle(p.Dir)
	rootfs := b.path(RootDir)
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		return supervisor.Process{}, err
	}
	pause, err := launch.PauseProgram()
	if err != nil {
		return supervisor.Process{}, err
	}
	if err := os.WriteFile(filepath.Join(rootfs, "pause"), pause, 0o755); err != nil {
		return supervisor.Process{}, err
	}
	if err := b.writeSpec(h.adapt(p.Spec, p.Annotations, rootfs)); err != nil {
		return supervisor.Process{}, err
	}
	t := h.podTask(p)
	t.Events = h.socket()
	return h.standIn(ctx, t, b.path(""), supervisor.Launch{ID: PodProcess(p.ID)})
}

func (h *Shim) podTask(p Pod) shim.Task {
	return shim.Task{ID: p.ID, Bundle: bundle(p.Dir).path(""), ConfigPath: h.ConfigPath}
}

// podPatience is how long a pod's process may take to end by itself.
const podPatience = 20 * time.Second

// RemovePod implements Pods.
func (h *Shim) RemovePod(ctx context.Context, p Pod) error {
	if err := h.endPod(ctx, p); err != nil {
		return err
	}
	if err := h.end(ctx, h.podTask(p)); err != nil {
		return err
	}
	return os.RemoveAll(bundle(p.Dir).dir())
}

// endPod ends a pod's process, by force if that does not hear.
func (h *Shim) endPod(ctx context.Context, p Pod) error {
	id := PodProcess(p.ID)
	kill := func() error { return shim.Kill(ctx, h.podTask(p), int(unix.SIGKILL)) }
	if err := h.ifAlive(ctx, id, kill); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	deadline := time.Now().Add(podPatience)
	for {
		err := h.Supervisor.Forget(ctx, id)
		if err == nil || !errors.Is(err, os.ErrInvalid) {
			return err
		}
		if time.Now().After(deadline) {
			h.Supervisor.Signal(ctx, id, int(unix.SIGKILL))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("process %s has not ended: %w", id, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (h *Shim) task(c Container) shim.Task {
	return shim.Task{ID: c.ID, Bundle: bundle(c.Bundle).path(""), Pod: bundle(c.PodDir).path(""), ConfigPath: h.ConfigPath}
}

// Start implements Handler.
func (h *Shim) Start(ctx context.Context, c Container) (supervisor.Process, error) {
	b := bundle(c.Bundle)
	if err := h.refreshSpec(b, c); err != nil {
		return supervisor.Process{}, err
	}
	t := h.task(c)
	t.Stdin = c.Stdin
	if c.Terminal {
		t.Console = h.socket()
	}
	l := supervisor.Launch{ID: c.ID, Logged: true, Log: c.Log, Stdin: c.Stdin, StdinOnce: c.StdinOnce}
	return h.standIn(ctx, t, b.path(""), l)
}

// Exec implements Handler.
func (h *Shim) Exec(ctx context.Context, x Exec) (p supervisor.Process, console *os.File, err error) {
	b := bundle(x.Bundle)
	id, execID, _ := strings.Cut(x.ID, "/")
	dir, err := os.MkdirTemp(b.path(""), "exec-")
	if err != nil {
		return p, nil, err
	}
	defer os.RemoveAll(dir) // the stand-in has read it when it is launched
	process, err := json.Marshal(x.Process)
	if err != nil {
		return p, nil, err
	}
	t := h.task(Container{ID: id, Bundle: x.Bundle, PodDir: x.PodDir})
	t.ExecID, t.Process, t.Stdin = execID, process, x.Stdio.Stdin != nil
	if x.Process.Terminal {
		t.Console = h.socket()
	}
	return h.launch(ctx, t, dir, supervisor.Launch{ID: x.ID, Stdio: x.Stdio, Once: true})
}

// standIn launches a stand-in whose terminal, if it has one, is logged.
func (h *Shim) standIn(ctx context.Context, t shim.Task, dir string, l supervisor.Launch) (supervisor.Process, error) {
	p, _, err := h.launch(ctx, t, dir, l)
	return p, err
}

// launch launches a stand-in; dir has its files.
func (h *Shim) launch(ctx context.Context, t shim.Task, dir string, l supervisor.Launch) (p supervisor.Process, console *os.File, err error) {
	if t.Shim, err = h.program(); err != nil {
		return p, nil, err
	}
	t.Log, t.Ready = filepath.Join(dir, "stand-in.log"), filepath.Join(dir, "ready")
	os.Remove(t.Ready)
	if err := unix.Mkfifo(t.Ready, 0o600); err != nil {
		return p, nil, &os.PathError{Op: "mkfifo", Path: t.Ready, Err: err}
	}
	data, err := json.Marshal(t)
	if err != nil {
		return p, nil, err
	}
	file := filepath.Join(dir, "task.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return p, nil, err
	}
	l.Start, l.Command = true, &supervisor.CommandLine{
		Run: []string{h.Self, "shim", file}, Then: []string{h.Self, "shim", "--await", t.Ready},
		Env: environment(), Dir: dir, Console: t.Console, Timeout: commandTimeout,
	}
	if p, console, err = h.Supervisor.Launch(ctx, l); err != nil {
		return p, console, h.explain(err, t.Log)
	}
	return p, console, nil
}

// Signal implements Handler: the shim is asked, since not every signal can be
// passed on by the stand-in.
func (h *Shim) Signal(ctx context.Context, c Container, id string, signal int) error {
	t := h.task(c)
	_, t.ExecID, _ = strings.Cut(id, "/")
	return h.ifAlive(ctx, id, func() error { return shim.Kill(ctx, t, signal) })
}

// Stats implements Pods.
func (h *Shim) Stats(ctx context.Context, c Container) (cgroup.Stats, error) {
	return shim.Stats(ctx, h.task(c))
}

// Pid implements Pods.
func (h *Shim) Pid(c Container) int { return shim.Pid(bundle(c.Bundle).path("")) }

// Ended implements Pods.
func (h *Shim) Ended(ctx context.Context, c Container) error { return h.end(ctx, h.task(c)) }

// OOMKilled implements Pods.
func (h *Shim) OOMKilled(c Container) bool { return shim.RanOutOfMemory(bundle(c.Bundle).path("")) }

// Update implements Pods.
func (h *Shim) Update(ctx context.Context, c Container) error {
	return shim.Update(ctx, h.task(c), c.Resources)
}

// end ends what a stand-in that is gone stood for.
func (h *Shim) end(ctx context.Context, t shim.Task) error {
	t.Shim = h.Program
	if path, err := h.program(); err == nil {
		t.Shim = path
	}
	return shim.End(ctx, t)
}

// Delete implements Handler.
func (h *Shim) Delete(ctx context.Context, c Container) error {
	if err := h.cancel(ctx, c.ID); err != nil {
		return err
	}
	return errors.Join(h.end(ctx, h.task(c)), h.OCI.Delete(ctx, c))
}
