package docker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/internal/tree"
	"podstead/sys"
)

// What Docker has no word for (recursively read-only, noexec and its like, images)
// is mounted by us, at Config.StateDir/mounts/KEY/N, and Docker makes a bind mount
// of that when the container starts. The key is the container's own and in its
// record, so that what a crash leaves is known by no container having it.

// labelHold is on containers that never run and keep the layers of an image that
// is mounted, with the key of the mounts.
const labelHold = "podstead.hold"

func (r *Runtime) mountsDir(key string) string { return filepath.Join(r.cfg.StateDir, "mounts", key) }

// prepare makes the place of a mount, which is a file or a directory as its
// source is.
func (r *Runtime) prepare(k *creation, i int, dir bool) (string, error) {
	if err := r.sharesMounts(); err != nil {
		return "", err
	}
	if k.rec.Mounts == "" {
		k.rec.Mounts = rand.Text()
	}
	place := filepath.Join(r.mountsDir(k.rec.Mounts), strconv.Itoa(i))
	if dir {
		return place, os.MkdirAll(place, 0o700)
	}
	if err := os.MkdirAll(filepath.Dir(place), 0o700); err != nil {
		return "", err
	}
	return place, os.WriteFile(place, nil, 0o600)
}

// sharesMounts is an error if Docker does not see what is mounted here.
func (r *Runtime) sharesMounts() error {
	conn, err := net.Dial("unix", strings.TrimPrefix(r.cfg.Endpoint, "unix://"))
	if err != nil {
		return cri.Errorf(codes.Unavailable, "docker endpoint %s: %v", r.cfg.Endpoint, err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		peer, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); errors.Join(err, credErr) != nil {
		return errors.Join(err, credErr)
	}
	// Whoever listens: Docker, or the service manager that made its socket.
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", peer.Pid))
	if err != nil {
		return fmt.Errorf("mount namespace of Docker: %w", err)
	}
	if own, err := os.Readlink("/proc/self/ns/mnt"); err != nil || own != theirs {
		return errors.Join(err, invalid("podstead makes this mount for Docker, and is in another mount namespace (PrivateMounts=, PrivateTmp= and others of systemd make one)"))
	}
	return nil
}

// mountHostPath mounts a path of the host as a request says, and returns where.
func (r *Runtime) mountHostPath(k *creation, i int, m *runtimeapi.Mount, source string) (string, error) {
	info, err := os.Stat(source)
	if err != nil {
		return "", err
	}
	place, err := r.prepare(k, i, info.IsDir())
	if err != nil {
		return "", err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return "", fmt.Errorf("open_tree %s: %w", source, err)
	}
	defer unix.Close(fd)
	if err := setAttributes(fd, m); err != nil {
		return "", fmt.Errorf("mount_setattr %s: %w", source, err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, place, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return "", fmt.Errorf("move_mount %s to %s: %w", source, place, err)
	}
	return place, nil
}

// setAttributes gives a tree of mounts the attributes that a request asks for,
// which has passed checkMount.
func setAttributes(fd int, m *runtimeapi.Mount) error {
	var top, all unix.MountAttr
	switch m.Propagation {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		all.Propagation = unix.MS_PRIVATE
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		all.Propagation = unix.MS_SLAVE
	}
	if m.Readonly {
		top.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if m.RecursiveReadOnly {
		all.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	for _, o := range m.MountOptions {
		top.Attr_set |= mountOptions[o]
	}
	return errors.Join(
		unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &all),
		unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &top))
}

// mountOptions are those that the CRI knows.
var mountOptions = map[string]uint64{
	"noexec": unix.MOUNT_ATTR_NOEXEC, "nodev": unix.MOUNT_ATTR_NODEV, "nosuid": unix.MOUNT_ATTR_NOSUID,
}

// mountImage shows an image to a container: Docker does so itself since API 1.48,
// and where its storage driver is overlay2 we can.
func (r *Runtime) mountImage(ctx context.Context, k *creation, i int, m *runtimeapi.Mount, to *mount.Mount) error {
	err := func() error {
		res, err := r.api().ImageInspect(ctx, m.Image.Image)
		if errdefs.IsNotFound(err) {
			return cri.Errorf(codes.NotFound, "not present")
		}
		if err != nil {
			return failed(err, "inspect")
		}
		img := &res.InspectResponse
		k.rec.config().Mounts[i].Image.ImageRef = imageRef(img)
		to.ReadOnly = false // it is by itself
		switch layers := layersOf(img); {
		case layers != nil:
			to.Source, err = r.mountLayers(ctx, k, i, img.ID, layers, m.ImageSubPath)
		case !r.speaks("1.48"):
			err = invalid("Docker knows image volumes since 28.0, and this one's storage driver %s keeps layers in no way that we know", r.info().Driver)
		default:
			to.Type, to.Source, to.BindOptions = mount.TypeImage, img.ID, nil
			to.ImageOptions = &mount.ImageOptions{Subpath: m.ImageSubPath}
			err = r.checkSubPath(ctx, img.ID, m.ImageSubPath)
		}
		return err
	}()
	if err != nil {
		return cri.WithReason(cri.ImageVolumeMountFailed, fmt.Errorf("image %s: %w", m.Image.Image, err))
	}
	return nil
}

// checkSubPath is an error unless an image has what is asked for. Docker would
// say so when the container is started.
func (r *Runtime) checkSubPath(ctx context.Context, imageID, sub string) error {
	switch {
	case sub == "":
		return nil
	case !filepath.IsLocal(sub):
		return invalid("image_sub_path %q leads out of the image", sub)
	}
	return r.look(ctx, imageID, func(id string) error {
		_, err := r.api().ContainerStatPath(ctx, id, client.ContainerStatPathOptions{Path: "/" + sub})
		return failed(err, "image_sub_path %q", sub)
	})
}

// imageRef is how others find the image: by digest if it has come from a
// registry.
func imageRef(img *image.InspectResponse) string {
	if len(img.RepoDigests) > 0 {
		return fullName(img.RepoDigests[0])
	}
	return img.ID
}

// layersOf are the directories of an image's layers, top first, nil if there are
// none.
func layersOf(img *image.InspectResponse) []string {
	if img.GraphDriver == nil || img.GraphDriver.Name != "overlay2" || img.GraphDriver.Data["UpperDir"] == "" {
		return nil
	}
	layers := []string{img.GraphDriver.Data["UpperDir"]}
	if lower := img.GraphDriver.Data["LowerDir"]; lower != "" {
		layers = append(layers, strings.Split(lower, ":")...)
	}
	return layers
}

// mountLayers mounts an image and returns the path of what is asked for in it.
func (r *Runtime) mountLayers(ctx context.Context, k *creation, i int, imageID string, layers []string, sub string) (string, error) {
	place, err := r.prepare(k, i, true)
	if err != nil {
		return "", err
	}
	_, err = r.api().ContainerCreate(ctx, client.ContainerCreateOptions{
		Name:       fmt.Sprintf("podstead-hold-%s-%d", k.rec.Mounts, i),
		Config:     &container.Config{Image: imageID, Entrypoint: []string{"/"}, Labels: map[string]string{labelHold: k.rec.Mounts}},
		HostConfig: &container.HostConfig{NetworkMode: "none"},
	})
	if err != nil {
		return "", failed(err, "hold")
	}
	mounted, err := tree.OpenImage(layers)
	if err != nil {
		return "", err
	}
	defer mounted.Close()
	if err := unix.MoveMount(int(mounted.Fd()), "", unix.AT_FDCWD, place, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return "", fmt.Errorf("move_mount to %s: %w", place, err)
	}
	source, err := tree.Within(place, sub)
	if err != nil {
		return "", fmt.Errorf("image_sub_path %q: %w", sub, err)
	}
	return source, nil
}

// unmount removes what was mounted for a container that has it by now: as long as
// it is mounted here, nobody could remove the directories that are mount points in
// it. It may be done again.
func (r *Runtime) unmount(key string) error {
	if key == "" {
		return nil
	}
	dir := r.mountsDir(key)
	places, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, p := range places {
		place := filepath.Join(dir, p.Name())
		// What is mounted below it may be mounted elsewhere, too, and must stay there.
		err := unix.Mount("", place, "", unix.MS_REC|unix.MS_PRIVATE, "")
		if err == nil {
			err = unix.Unmount(place, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
		if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: it is no mount
			return fmt.Errorf("unmount %s: %w", place, err)
		}
	}
	return nil
}

// discardMounts removes all that was made for the mounts of a container that is
// gone or was never made. It may be done again.
func (r *Runtime) discardMounts(ctx context.Context, key string) error {
	if key == "" {
		return nil
	}
	if err := r.unmount(key); err != nil {
		return err
	}
	holds, err := r.api().ContainerList(ctx, client.ContainerListOptions{All: true, Filters: make(client.Filters).Add("label", labelHold+"="+key)})
	if err != nil {
		return failed(err, "list containers")
	}
	for _, c := range holds.Items {
		if err := r.removeDocker(ctx, c.ID); err != nil {
			return err
		}
	}
	return sys.RemoveTree(r.mountsDir(key))
}

// discardLostMounts discards those of containers that are gone, and unmounts those
// of containers that were started.
func (r *Runtime) discardLostMounts(ctx context.Context, ctrs []*ctr) error {
	keys, err := os.ReadDir(filepath.Join(r.cfg.StateDir, "mounts"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	live := map[string]bool{}
	var errs []error
	for _, c := range ctrs {
		live[c.rec.Mounts] = true
		if c.state.Status != container.StateCreated {
			errs = append(errs, r.unmount(c.rec.Mounts))
		}
	}
	for _, k := range keys {
		if !live[k.Name()] {
			errs = append(errs, r.discardMounts(ctx, k.Name()))
		}
	}
	return errors.Join(errs...)
}
