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

// Place is where a volume can be measured.
type Place struct {
	Path string
	// Claim is the name of the claim whose storage it is, "" for none.
	Claim string
	// Walked volumes are parts of a file system that is for others, too: what they
	// take of it are their files. CSI volumes are known to their driver, by the
	// directory that Path is. The others are as full as their file system is.
	Walked, CSI bool
}

// Places tells where volumes can be measured, by their names. As with a kubelet,
// paths and images of the host cannot: they are not the pod's.
func (p Pod) Places() map[string]Place {
	out := map[string]Place{}
	for i := range p.Spec.Spec.Volumes {
		v := &p.Spec.Spec.Volumes[i]
		claim := p.Claims[v.Name]
		switch {
		case v.EmptyDir != nil:
			out[v.Name] = Place{Path: p.path(v), Walked: v.EmptyDir.Medium == corev1.StorageMediumDefault}
		case shown(v):
			out[v.Name] = Place{Path: p.path(v), Walked: true}
		case v.CSI != nil:
			out[v.Name] = Place{Path: p.CSI(v.Name), CSI: true}
		case v.Ephemeral != nil: // the claim would be called so
			out[v.Name] = Place{Path: p.path(v), Claim: p.Spec.Name + "-" + v.Name}
		case v.PersistentVolumeClaim == nil, claim.Err != nil, claim.HostPath != nil:
		case claim.CSI:
			out[v.Name] = Place{Path: p.CSI(v.Name), Claim: v.PersistentVolumeClaim.ClaimName, CSI: true}
		case claim.path() != "":
			out[v.Name] = Place{Path: claim.path(), Claim: v.PersistentVolumeClaim.ClaimName}
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
