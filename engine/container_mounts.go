package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/internal/selinux"
	"podstead/engine/internal/tree"
	"podstead/image"
)

// prepareMounts returns a copy of the config whose mounts have sources that
// exist: missing host paths are made as directories, as containerd and CRI-O
// do, links are followed, images are mounted.
func (e *Engine) prepareMounts(ctx context.Context, k *creation) (*runtimeapi.ContainerConfig, error) {
	c := &runtimeapi.ContainerConfig{
		Metadata: k.config.Metadata, Command: k.config.Command, Args: k.config.Args,
		WorkingDir: k.config.WorkingDir, Envs: k.config.Envs, Tty: k.config.Tty, Linux: k.config.Linux,
	}
	for i, m := range k.config.Mounts {
		source := m.HostPath
		var err error
		if m.Image.GetImage() != "" {
			source, err = e.mountImage(ctx, k, i, m)
		} else {
			source, err = tree.HostPath(m.HostPath)
		}
		if err == nil && m.SelinuxRelabel && m.Image.GetImage() == "" {
			err = selinux.Relabel(source, k.c.rec.Labels.Mount)
		}
		if err != nil {
			return nil, fmt.Errorf("mounts[%d] (%s): %w", i, m.ContainerPath, err)
		}
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{
			ContainerPath: m.ContainerPath, HostPath: source, Readonly: m.Readonly,
			SelinuxRelabel: m.SelinuxRelabel, Propagation: m.Propagation,
			UidMappings: m.UidMappings, GidMappings: m.GidMappings,
			RecursiveReadOnly: m.RecursiveReadOnly, MountOptions: m.MountOptions,
		})
	}
	return c, nil
}

// mountImage mounts an image read-only below the container's directory, and
// returns the path of what is asked for in it.
func (e *Engine) mountImage(ctx context.Context, k *creation, i int, m *runtimeapi.Mount) (string, error) {
	fail := func(err error) (string, error) {
		return "", cri.WithReason(cri.ImageVolumeMountFailed, fmt.Errorf("image %s: %w", m.Image.Image, err))
	}
	img, err := e.cfg.Images.Get(m.Image.Image)
	if errors.Is(err, image.ErrNotFound) {
		return fail(cri.Errorf(codes.NotFound, "not present"))
	}
	if err != nil {
		return fail(err)
	}
	name := "image-" + strconv.Itoa(i)
	err = e.changeContainer(k.c, func(r *containerRecord) {
		r.ImageMounts = append(slices.Clip(r.ImageMounts), name)
		r.Config.M = proto.CloneOf(r.config()) // others may be reading the old one
		r.config().Mounts[i].Image.ImageRef = imageRef(img)
	})
	if err != nil {
		return fail(err)
	}
	lower, err := e.cfg.Images.Hold(ctx, img.ID, k.c.id+"/"+name)
	if err != nil {
		return fail(err)
	}
	target := e.containerFile(k.c.id, name)
	if err := os.Mkdir(target, 0o700); err != nil {
		return fail(err)
	}
	options := selinux.MountOption(k.c.rec.Labels.Mount)
	if len(options) > 0 && len(lower) == 1 {
		lower = append(slices.Clip(lower), target) // empty: one layer alone is no overlay
	}
	mounted, err := tree.OpenImage(lower, options...)
	if err != nil {
		return fail(err)
	}
	defer mounted.Close()
	if err := unix.MoveMount(int(mounted.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fail(os.NewSyscallError("move_mount", err))
	}
	source, err := tree.Within(target, m.ImageSubPath)
	if err != nil {
		return fail(fmt.Errorf("image_sub_path %q: %w", m.ImageSubPath, err))
	}
	return source, nil
}
