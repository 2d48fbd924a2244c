package handler

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A runtime enters the root of a container with a user namespace as that
// namespace's root, who is nobody on the way there. So such roots are not in
// the bundle but below the run directory, which those may pass who know a name
// in it.
//
//	RunDir/roots/ID

// RootsDir in the run directory has the roots of containers with user namespaces.
const RootsDir = "roots"

// rootfs is where a container's root is mounted.
func (h *OCI) rootfs(s *specs.Spec, b bundle) (string, error) {
	if !hasUserNamespace(s) {
		return b.path(RootDir), nil
	}
	dir := filepath.Join(h.RunDir, RootsDir)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", err
	}
	for _, d := range []string{dir, h.RunDir, filepath.Dir(h.RunDir)} {
		info, err := os.Stat(d)
		if err != nil {
			return "", err
		}
		if mode := info.Mode().Perm(); mode&0o001 == 0 {
			if err := os.Chmod(d, mode|0o011); err != nil {
				return "", err
			}
		}
	}
	return filepath.Join(dir, filepath.Base(string(b))), nil
}

// mountRoot mounts a container's root, as its runtime gets it.
func (h *OCI) mountRoot(c Container, rootfs string) error {
	if c.Rootfs == nil {
		return errors.New("no root")
	}
	root, err := c.Rootfs.Mount(c.Spec)
	if err != nil {
		return fmt.Errorf("mount the root: %w", err)
	}
	defer root.Close()
	err = unix.MoveMount(int(root.Fd()), "", unix.AT_FDCWD, rootfs, unix.MOVE_MOUNT_F_EMPTY_PATH)
	return os.NewSyscallError("move_mount", err)
}

// unmountRoot undoes it, wherever the root is.
func (h *OCI) unmountRoot(b bundle) error {
	other := filepath.Join(h.RunDir, RootsDir, filepath.Base(string(b)))
	for _, rootfs := range []string{b.path(RootDir), other} {
		err := unix.Unmount(rootfs, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "unmount", Path: rootfs, Err: err}
		}
	}
	if err := os.Remove(other); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// hostSysfs has the host's /sys mounted with what is below it, where it is: a
// user namespace's root, as which runtimes mount, cannot take one from the other.
func (h *OCI) hostSysfs(mounts []specs.Mount) []specs.Mount {
	mounts = slices.Clone(mounts)
	for i, m := range mounts {
		if m.Destination != "/sys" || m.Type != "bind" {
			continue
		}
		mounts[i].Options = slices.Clone(m.Options)
		for j, o := range m.Options {
			if o == "bind" {
				mounts[i].Options[j] = "rbind"
			}
			if o == "ro" && h.know().supports.RecursiveReadOnlyMounts {
				mounts[i].Options[j] = "rro"
			}
		}
	}
	return mounts
}
