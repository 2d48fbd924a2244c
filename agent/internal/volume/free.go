package volume

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"podstead/sys"
)

// Scratch tells where the emptyDirs on disk are, by their names.
func (p Pod) Scratch() map[string]string {
	out := map[string]string{}
	for i := range p.Spec.Spec.Volumes {
		if v := &p.Spec.Spec.Volumes[i]; v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumDefault {
			out[v.Name] = p.path(v)
		}
	}
	return out
}

// Free removes the emptyDirs of a pod that does not run, on disk and in memory;
// Setup makes them anew. What others have mounted in one is named in the error
// and stays, as in Remove.
func (p Pod) Free() error {
	var errs []error
	for i := range p.Spec.Spec.Volumes {
		if v := &p.Spec.Spec.Volumes[i]; v.EmptyDir != nil {
			errs = append(errs, p.free(v))
		}
	}
	return errors.Join(errs...)
}

func (p Pod) free(v *corev1.Volume) error {
	dir := p.path(v)
	mounts, err := mountsBelow(p.Dir)
	if err != nil {
		return err
	}
	// Mounts of parts of it would keep what is in memory.
	parts := filepath.Join(p.Dir, "volume-subpaths", v.Name) + "/"
	for _, m := range mounts {
		if !ours(p.Dir, m) || (m != dir && !strings.HasPrefix(m, parts)) {
			continue
		}
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	err = sys.RemoveTree(dir)
	if errors.Is(err, unix.EXDEV) {
		left, _ := mountsBelow(dir)
		return mounted(dir, left)
	}
	return err
}
