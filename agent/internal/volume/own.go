package volume

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	corev1 "k8s.io/api/core/v1"
)

// own gives a volume to the pod's fsGroup: group, group bits as the owner's,
// and set-group-ID on directories, so that what is made later belongs to it too.
func own(dir string, sc *corev1.PodSecurityContext, readonly bool) error {
	if sc.FSGroup == nil {
		return nil
	}
	gid := int(*sc.FSGroup)
	if sc.FSGroupChangePolicy != nil && *sc.FSGroupChangePolicy == corev1.FSGroupChangeOnRootMismatch && owned(dir, gid) {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := os.Lchown(path, -1, gid); err != nil {
			return err
		}
		if d.Type()&fs.ModeSymlink != 0 {
			return nil
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		return os.Chmod(path, groupMode(st.Mode(), readonly))
	})
}

func groupMode(m fs.FileMode, readonly bool) fs.FileMode {
	bits := fs.FileMode(0o660)
	if readonly {
		bits = 0o440
	}
	if m.IsDir() {
		bits |= 0o110 | fs.ModeSetgid
	}
	return m&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) | bits
}

func owned(dir string, gid int) bool {
	st, err := os.Stat(dir)
	if err != nil {
		return false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && int(sys.Gid) == gid && st.Mode()&fs.ModeSetgid != 0 && st.Mode().Perm()&0o070 == 0o070
}
