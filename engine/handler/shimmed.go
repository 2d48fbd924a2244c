package handler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"podstead/engine/handler/shim"
	"podstead/supervisor"
)

// Shim has a containerd shim run containers, by protocol v2 or v3. For each
// container and each exec there is a stand-in under the supervisor, see package
// shim. Terminals are refused.
type Shim struct {
	OCI               // bundle and specification are as for a command line
	Self       string // our own program, which is the stand-in
	ConfigPath string // the runtime's own
}

var _ Handler = (*Shim)(nil)

// Create implements Handler.
func (h *Shim) Create(ctx context.Context, c Container) (supervisor.Process, error) {
	if c.Terminal {
		return supervisor.Process{}, fmt.Errorf("tty: handler %s has no terminals", h.Name)
	}
	return h.OCI.Create(ctx, c)
}

// Start implements Handler.
func (h *Shim) Start(ctx context.Context, c Container) (supervisor.Process, error) {
	b := bundle(c.Bundle)
	if err := h.refreshSpec(b, c); err != nil {
		return supervisor.Process{}, err
	}
	t := shim.Task{ID: c.ID, Bundle: b.path(""), ConfigPath: h.ConfigPath, Stdin: c.Stdin}
	l := supervisor.Launch{ID: c.ID, Logged: true, Log: c.Log, Stdin: c.Stdin, StdinOnce: c.StdinOnce}
	return h.standIn(ctx, t, b.path(""), l)
}

// Exec implements Handler.
func (h *Shim) Exec(ctx context.Context, x Exec) (p supervisor.Process, console *os.File, err error) {
	if x.Process.Terminal {
		return p, nil, fmt.Errorf("tty: handler %s has no terminals", h.Name)
	}
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
	t := shim.Task{ID: id, Bundle: b.path(""), ExecID: execID, Process: process, Stdin: x.Stdio.Stdin != nil}
	p, err = h.standIn(ctx, t, dir, supervisor.Launch{ID: x.ID, Stdio: x.Stdio})
	return p, nil, err
}

// standIn launches a stand-in; dir has its files.
func (h *Shim) standIn(ctx context.Context, t shim.Task, dir string, l supervisor.Launch) (p supervisor.Process, err error) {
	if t.Shim, err = h.program(); err != nil {
		return p, err
	}
	t.Log, t.Ready = filepath.Join(dir, "stand-in.log"), filepath.Join(dir, "ready")
	os.Remove(t.Ready)
	if err := unix.Mkfifo(t.Ready, 0o600); err != nil {
		return p, &os.PathError{Op: "mkfifo", Path: t.Ready, Err: err}
	}
	data, err := json.Marshal(t)
	if err != nil {
		return p, err
	}
	file := filepath.Join(dir, "task.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return p, err
	}
	l.Start, l.Command = true, &supervisor.CommandLine{
		Run: []string{h.Self, "shim", file}, Then: []string{h.Self, "shim", "--await", t.Ready},
		Env: environment(), Dir: dir, Timeout: commandTimeout,
	}
	if p, _, err = h.Supervisor.Launch(ctx, l); err != nil {
		return p, h.explain(err, t.Log)
	}
	return p, nil
}

// Signal implements Handler: the stand-in passes it on.
func (h *Shim) Signal(ctx context.Context, id string, signal int) error {
	return h.Supervisor.Signal(ctx, id, shim.Signal(signal))
}

// Delete implements Handler.
func (h *Shim) Delete(ctx context.Context, c Container) error {
	if err := h.cancel(ctx, c.ID); err != nil {
		return err
	}
	t := shim.Task{ID: c.ID, Bundle: bundle(c.Bundle).path(""), Shim: h.Program}
	if path, err := h.program(); err == nil {
		t.Shim = path
	}
	err := shim.Delete(ctx, t)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		err = nil // the shim's program is gone; its processes are the cgroup's
	}
	return errors.Join(err, h.OCI.Delete(ctx, c))
}
