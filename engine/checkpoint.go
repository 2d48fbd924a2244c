package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/config"
	"podstead/engine/handler"
	"podstead/engine/internal/checkpoint"
	"podstead/oci/criu"
	"podstead/sys"
)

// checkpointTimeout is for callers that name none.
const checkpointTimeout = 10 * time.Minute

// thawTimeout bounds how long processes may take to go on.
const thawTimeout = 10 * time.Second

// CheckpointContainer writes a running container's state to an archive; the
// container goes on, whatever comes of it. The archive appears as a whole or
// not at all.
func (e *Engine) CheckpointContainer(ctx context.Context, req *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	if !filepath.IsAbs(req.Location) {
		return nil, cri.Errorf(codes.InvalidArgument, "location: %q is not absolute", req.Location)
	}
	if req.Timeout < 0 {
		return nil, cri.Errorf(codes.InvalidArgument, "timeout: %d is negative", req.Timeout)
	}
	c, err := e.mustContainer(req.ContainerId)
	if err != nil {
		return nil, err
	}
	timeout := checkpointTimeout
	if req.Timeout > 0 {
		timeout = time.Duration(req.Timeout) * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err = e.withCheckpoints(ctx, []*container{c}, func(dirs []checkpoint.Dir) error {
		return dirs[0].Save(ctx, req.Location)
	})
	if err != nil {
		return nil, withCode(ctx, fmt.Errorf("checkpoint: %w", err))
	}
	e.log.Info("container was checkpointed", "container", c.id, "path", req.Location)
	return &runtimeapi.CheckpointContainerResponse{}, nil
}

// withCode gives what CRIU could not do the class that clients act on.
func withCode(ctx context.Context, err error) error {
	var failed *criu.Error
	switch {
	case errors.Is(err, criu.ErrAbsent), errors.Is(err, handler.ErrDump), errors.As(err, &failed):
		return cri.Errorf(codes.FailedPrecondition, "%s", err)
	case errors.Is(err, criu.ErrForbidden), errors.Is(err, checkpoint.ErrFormat):
		return cri.Errorf(codes.InvalidArgument, "%s", err)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return cri.Errorf(codes.DeadlineExceeded, "%s", err)
	}
	return err
}

// withCheckpoints takes the state of running containers at one moment: all of
// them stand still until the last has been dumped, and go on before save writes
// archives of the directories, which are then removed.
func (e *Engine) withCheckpoints(ctx context.Context, list []*container, save func([]checkpoint.Dir) error) (err error) {
	for _, c := range list {
		if err := c.turn.take(ctx); err != nil {
			return err
		}
		defer c.turn.give()
	}
	var dirs []checkpoint.Dir
	for _, c := range list {
		dir, err := e.checkpointDir(c, "checkpoint-made")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, sys.RemoveTree(string(dir))) }()
		dirs = append(dirs, dir)
	}
	if err := e.dumpAll(ctx, list, dirs); err != nil {
		return err
	}
	return save(dirs)
}

// checkpointDir makes an empty directory below the container's own, so that it
// goes with the container if nobody else removes it.
func (e *Engine) checkpointDir(c *container, name string) (checkpoint.Dir, error) {
	dir := e.containerFile(c.id, name)
	if err := sys.RemoveTree(dir); err != nil { // of an engine that died
		return "", err
	}
	return checkpoint.Dir(dir), os.MkdirAll(dir, 0o700)
}

// dumpAll dumps containers that stand still. They go on in any case.
func (e *Engine) dumpAll(ctx context.Context, list []*container, dirs []checkpoint.Dir) (err error) {
	for _, c := range list {
		if err := e.canCheckpoint(c); err != nil {
			return err
		}
	}
	for _, c := range list {
		g := e.cfg.Cgroups.Group(c.record().Cgroup)
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawTimeout)
			defer cancel()
			err = errors.Join(err, g.Thaw(ctx))
		}()
		if err := g.Freeze(ctx); err != nil {
			return err
		}
	}
	for i, c := range list {
		if err := e.dump(ctx, c, dirs[i]); err != nil {
			return fmt.Errorf("container %s: %w", c.id, err)
		}
	}
	return nil
}

// canCheckpoint tells why not.
func (e *Engine) canCheckpoint(c *container) error {
	rec := c.record()
	if rec.Phase != containerRunning {
		return cri.Errorf(codes.FailedPrecondition, "container %s is %s, not running", c.id, rec.Phase)
	}
	_, err := e.dumper(rec.Runtime)
	return err
}

// dumper returns the side for checkpoints of the handler that something was made
// with. Shims have one of their own, which is not used.
func (e *Engine) dumper(c config.Handler) (handler.Dumper, error) {
	h, err := e.handlerOf(c)
	if err != nil {
		return nil, err
	}
	d, ok := h.(handler.Dumper)
	if _, shim := h.(handler.Pods); !ok || shim {
		return nil, cri.Errorf(codes.Unimplemented, "runtime handler %q cannot checkpoint containers", c.Name)
	}
	return d, nil
}

// checkpointer returns the handler that something was made with, if it restores,
// too.
func (e *Engine) checkpointer(c config.Handler) (handler.Checkpointer, error) {
	h, err := e.handlerOf(c)
	if err != nil {
		return nil, err
	}
	k, ok := h.(handler.Checkpointer)
	if !ok {
		return nil, cri.Errorf(codes.Unimplemented, "runtime handler %q cannot restore containers", c.Name)
	}
	return k, nil
}

// dump fills a directory with the checkpoint of a container that stands still.
func (e *Engine) dump(ctx context.Context, c *container, dir checkpoint.Dir) error {
	rec := c.record()
	h, err := e.dumper(rec.Runtime)
	if err != nil {
		return err
	}
	s, err := e.specification(c)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir.Images(), 0o700); err != nil {
		return err
	}
	err = h.Checkpoint(ctx, handler.Checkpoint{
		ID: c.id, Spec: s, Pid: rec.Pid, Stdio: rec.Stdio, Freeze: e.cfg.Cgroups.Group(rec.Cgroup).FreezerDir(),
		Images: dir.Images(), Work: string(dir),
	})
	if err != nil {
		return err
	}
	lower, err := e.cfg.Images.Hold(ctx, rec.ImageID, c.id)
	if err != nil {
		return err
	}
	if err := dir.SaveDiff(ctx, e.containerFile(c.id, "upper"), lower); err != nil {
		return err
	}
	if err := dir.WriteSpec(s); err != nil {
		return err
	}
	return dir.WriteConfig(checkpoint.Config{
		ID: c.id, Name: rec.config().GetMetadata().GetName(), OCIRuntime: cmp.Or(rec.Runtime.Name, "podstead"),
		RootfsImage: rec.ImageName, RootfsImageRef: rec.ImageRef, RootfsImageName: rec.ImageName,
		CreatedTime: rec.CreatedAt, CheckpointedAt: time.Now(),
	})
}

// checkpointInfo tells whether containers can be checkpointed, or why not.
func checkpointInfo() any {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	path, err := criu.Usable(ctx)
	if err != nil {
		return map[string]any{"usable": false, "error": err.Error()}
	}
	return map[string]any{"usable": true, "criu": path}
}
