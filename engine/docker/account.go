package docker

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"podstead/engine/internal/spec"
)

// accountCache keeps the users and groups of images, which never change. The
// zero value is ready.
type accountCache struct {
	mu      sync.Mutex
	byImage map[string]spec.Accounts
}

// maxCachedAccounts bounds the cache: images in use are few.
const maxCachedAccounts = 128

// accountsOf reads an image's /etc/passwd and /etc/group. Docker could look up
// a user by itself, but only when the container starts, without a word about
// whom it found, and never with groups both of the image and of the request.
func (r *Runtime) accountsOf(ctx context.Context, imageID string) (spec.Accounts, error) {
	c := &r.accounts
	c.mu.Lock()
	got, ok := c.byImage[imageID]
	c.mu.Unlock()
	if ok {
		return got, nil
	}
	got, err := r.readAccounts(ctx, imageID)
	if err != nil {
		return got, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byImage == nil || len(c.byImage) >= maxCachedAccounts {
		c.byImage = map[string]spec.Accounts{}
	}
	c.byImage[imageID] = got
	return got, nil
}

// labelLook is on containers that are made to look into an image. They are
// removed at once, and at the next start if a crash comes between.
const labelLook = "podstead.look"

// look makes a container that never runs while f looks into it, since Docker
// shows the files of containers only, and no storage driver need be known so.
func (r *Runtime) look(ctx context.Context, imageID string, f func(id string) error) (err error) {
	res, err := r.api().ContainerCreate(ctx, client.ContainerCreateOptions{
		Config:     &container.Config{Image: imageID, Entrypoint: []string{"/"}, Labels: map[string]string{labelLook: imageID}},
		HostConfig: &container.HostConfig{NetworkMode: "none"},
	})
	if err != nil {
		return failed(err, "look into image %s", imageID)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		err = errors.Join(err, r.removeDocker(ctx, res.ID))
	}()
	return f(res.ID)
}

func (r *Runtime) readAccounts(ctx context.Context, imageID string) (a spec.Accounts, err error) {
	err = r.look(ctx, imageID, func(id string) error {
		passwd, err := r.readFile(ctx, id, "/etc/passwd")
		if err != nil {
			return err
		}
		group, err := r.readFile(ctx, id, "/etc/group")
		if err != nil {
			return err
		}
		a = spec.ParseAccounts(passwd, group)
		return nil
	})
	return a, err
}

// readFile reads a regular file of a container, as far as one that holds
// accounts may be large. One that is missing, or is no file, is empty.
func (r *Runtime) readFile(ctx context.Context, id, path string) ([]byte, error) {
	res, err := r.api().CopyFromContainer(ctx, id, client.CopyFromContainerOptions{SourcePath: path})
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, failed(err, "read %s of container %s", path, id)
	}
	defer res.Content.Close()
	t := tar.NewReader(res.Content)
	h, err := t.Next()
	if err != nil {
		return nil, failed(err, "read %s of container %s", path, id)
	}
	if h.Typeflag != tar.TypeReg {
		return nil, nil
	}
	if h.Size > spec.MaxAccountFile {
		return nil, invalid("the image's %s has %d bytes, more than %d", path, h.Size, spec.MaxAccountFile)
	}
	b, err := io.ReadAll(t)
	return b, failed(err, "read %s of container %s", path, id)
}
