package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"podstead/cri"
	"podstead/engine/handler"
	"podstead/engine/internal/checkpoint"
	"podstead/engine/internal/tree"
	"podstead/image"
	"podstead/supervisor"
	"podstead/sys"
)

// source is a checkpoint that a container is to be made from.
type source struct {
	dir    checkpoint.Dir // taken over, below the container's own directory
	config checkpoint.Config
}

// restoreDir is below the container's directory until its restore has ended.
const restoreDir = "checkpoint"

// takeCheckpoint takes a checkpoint over if the container is to be made from
// one: its image is then the path of an archive, or made of one. What is in there is an
// attacker's word: which image it was made from, which files, which memory. What
// the container may do is the request's, as for any other.
func (e *Engine) takeCheckpoint(ctx context.Context, k *creation) (err error) {
	from := k.config.Image.Image
	isImage := false
	if k.from != "" {
		from = k.from
	} else if !filepath.IsAbs(from) {
		if isImage, err = e.isCheckpoint(from); !isImage || err != nil {
			return err
		}
	}
	if _, err := e.checkpointer(k.sandbox.Runtime); err != nil {
		return err
	}
	// Not yet recorded: a crash leaves a directory without a record, which goes.
	dir, err := e.checkpointDir(k.c, restoreDir)
	if err != nil {
		return err
	}
	if isImage {
		err = e.copyCheckpoint(ctx, k, from, dir)
	} else {
		err = extractCheckpoint(ctx, from, dir)
	}
	if err != nil {
		return err
	}
	k.source = &source{dir: dir}
	if k.source.config, err = dir.Config(); err != nil {
		return withCode(ctx, err)
	}
	return nil
}

// checkpointAnnotations mark an image as made of a checkpoint: CRI-O's and
// Podman's, and the one that all agree on.
var checkpointAnnotations = [...]string{
	"io.kubernetes.cri-o.annotations.checkpoint.name", "io.podman.annotations.checkpoint.name", "org.criu.checkpoint.container.name",
}

// isCheckpoint tells whether an image is a checkpoint. One that is not there is
// none.
func (e *Engine) isCheckpoint(name string) (bool, error) {
	annotations, err := e.cfg.Images.Annotations(name)
	if errors.Is(err, image.ErrNotFound) {
		return false, nil
	}
	for _, a := range checkpointAnnotations {
		if annotations[a] != "" {
			return true, err
		}
	}
	return false, err
}

// copyCheckpoint takes over what an image of a checkpoint has in its root.
func (e *Engine) copyCheckpoint(ctx context.Context, k *creation, name string, dir checkpoint.Dir) (err error) {
	holder := k.c.id + "/" + restoreDir
	defer func() { err = errors.Join(err, e.cfg.Images.Release(context.WithoutCancel(ctx), holder)) }()
	lower, err := e.cfg.Images.Hold(ctx, name, holder)
	if err != nil {
		return err
	}
	root, err := tree.OpenImage(lower)
	if err != nil {
		return err
	}
	defer root.Close()
	at := checkpoint.Dir(fmt.Sprintf("/proc/self/fd/%d", root.Fd()))
	if err := checkpoint.Copy(ctx, at, dir); err != nil {
		return withCode(ctx, fmt.Errorf("image %s: %w", name, err))
	}
	return nil
}

func extractCheckpoint(ctx context.Context, from string, dir checkpoint.Dir) error {
	f, err := os.OpenFile(from, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe would wait
	if errors.Is(err, os.ErrNotExist) {
		return cri.Errorf(codes.NotFound, "checkpoint %s is not present", from)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return cri.Errorf(codes.InvalidArgument, "checkpoint %s is no regular file", from)
	}
	if err := checkpoint.Extract(ctx, f, info.Size(), dir); err != nil {
		return withCode(ctx, err)
	}
	return nil
}

// baseImage finds the image that the root of a checkpointed container is based
// on: by digest if that is known. An archive that was named beside an image must
// be of that.
func (e *Engine) baseImage(k *creation) (image.Image, error) {
	s := k.source
	if k.from != "" {
		want, err := e.cfg.Images.Get(k.config.Image.Image)
		if err != nil {
			return want, err
		}
		if name := s.config.Name; name != k.config.Metadata.Name {
			return want, cri.Errorf(codes.InvalidArgument, "metadata.name: the checkpoint is of container %q", name)
		}
		got, err := e.cfg.Images.Get(s.config.RootfsImageRef)
		if err == nil && got.ID != want.ID {
			return want, cri.Errorf(codes.InvalidArgument, "image: the checkpoint is of a container of %s (%s)", s.config.RootfsImageName, got.ID)
		}
		return want, nil
	}
	for _, name := range []string{s.config.RootfsImageRef, s.config.RootfsImage, s.config.RootfsImageName} {
		if name == "" || filepath.IsAbs(name) {
			continue
		}
		img, err := e.cfg.Images.Get(name)
		if err == nil || !errors.Is(err, image.ErrNotFound) {
			return img, err
		}
	}
	return image.Image{}, cri.Errorf(codes.NotFound, "image %q of the checkpoint is not present", s.config.RootfsImageName)
}

// restoreFiles brings back what had changed in the container's root.
func (e *Engine) restoreFiles(ctx context.Context, k *creation) error {
	if k.source == nil {
		return nil
	}
	diff, err := k.source.dir.Diff()
	if err != nil {
		return err
	}
	upper := e.containerFile(k.c.id, "upper")
	if diff != nil {
		defer diff.Close()
		info, err := diff.Stat()
		if err != nil {
			return err
		}
		if err := image.UnpackDiff(ctx, diff, upper, k.lower, info.Size()); err != nil {
			return cri.Errorf(codes.InvalidArgument, "%s: %s", checkpoint.DiffFile, err)
		}
	}
	deleted, err := k.source.dir.Deleted()
	if err != nil {
		return err
	}
	return checkpoint.ApplyDeleted(upper, deleted)
}

// launchRestored prepares what will restore the container at its start.
func (e *Engine) launchRestored(ctx context.Context, k *creation, c handler.Container) (supervisor.Process, error) {
	h, err := e.checkpointer(k.sandbox.Runtime)
	if err != nil {
		return supervisor.Process{}, err
	}
	if err := k.sameProcess(); err != nil {
		return supervisor.Process{}, err
	}
	r, p, err := h.CreateRestored(ctx, c, k.source.dir.Images())
	if err != nil {
		return p, withCode(ctx, err)
	}
	k.c.mu.Lock()
	k.c.restoring = r
	k.c.mu.Unlock()
	return p, nil
}

// sameProcess compares what a pod's restore expects to run with what was
// dumped. The environment may differ: parts of it are the node's.
func (k *creation) sameProcess() error {
	if k.from == "" {
		return nil
	}
	dumped, err := k.source.dir.Spec()
	if err != nil {
		return cri.Errorf(codes.InvalidArgument, "%s", err)
	}
	was, is := dumped.Process, k.spec.Process
	switch {
	case was == nil:
		return cri.Errorf(codes.InvalidArgument, "%s: has no process", checkpoint.SpecFile)
	case !slices.Equal(was.Args, is.Args):
		return cri.Errorf(codes.InvalidArgument, "command, args: the checkpoint is of %q, not of %q", was.Args, is.Args)
	case was.Cwd != is.Cwd:
		return cri.Errorf(codes.InvalidArgument, "working_dir: the checkpoint is of %q, not of %q", was.Cwd, is.Cwd)
	case was.User.UID != is.User.UID || was.User.GID != is.User.GID:
		return cri.Errorf(codes.InvalidArgument, "linux.security_context: the checkpoint is of user %d:%d, not of %d:%d",
			was.User.UID, was.User.GID, is.User.UID, is.User.GID)
	}
	return nil
}

// restoreProcess has a container's process restored.
func (e *Engine) restoreProcess(ctx context.Context, c *container) (supervisor.Process, error) {
	c.mu.Lock()
	r := c.restoring
	c.restoring = nil
	c.mu.Unlock()
	if r == nil {
		return supervisor.Process{}, cri.Errorf(codes.FailedPrecondition,
			"the engine was started anew since the container was created from a checkpoint: create it again")
	}
	p, err := r.Start(ctx, e.cfg.Cgroups.Group(c.record().Cgroup))
	if err != nil {
		return p, withCode(ctx, fmt.Errorf("restore: %w", err))
	}
	if err := sys.RemoveTree(e.containerFile(c.id, restoreDir)); err != nil {
		e.log.Warn("a restored checkpoint stays", "container", c.id, "error", err)
	}
	return p, nil
}

// dropRestoring gives up a restore that will not be.
func (c *container) dropRestoring() {
	c.mu.Lock()
	r := c.restoring
	c.restoring = nil
	c.mu.Unlock()
	if r != nil {
		_ = r.Close() // sockets and files that were only read
	}
}

// restoreInterrupted ends a container whose restore lay ahead or was under way
// when the engine ended: nobody has looked at what CRIU may have restored.
func (e *Engine) restoreInterrupted(c *container) {
	message := "the engine was started anew before the container was restored: create it again"
	e.recordExit(c, exit{at: time.Now(), code: exitStartError, reason: reasonStartError, message: message})
	if err := e.killGroup(c.record().Cgroup); err != nil {
		e.log.Error("kill what was being restored", "container", c.id, "error", err)
	}
}
