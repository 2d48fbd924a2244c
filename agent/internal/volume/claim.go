package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	corev1 "k8s.io/api/core/v1"
)

// Claim is where the storage of a claim is: one of HostPath, Local, Directory and
// CSI, or Err, what it waits for.
type Claim struct {
	HostPath  *corev1.HostPathVolumeSource
	Local     string // must be there
	Directory string // is made on demand
	// CSI: a driver has mounted it, and the pod's fsGroup is to be put on it if
	// Own.
	CSI, Own bool
	Err      error
}

func (c Claim) path() string {
	if c.HostPath != nil {
		return c.HostPath.Path
	}
	return c.Local + c.Directory
}

// claim makes a claim's storage usable. Data outlives the pod, so it is nobody's
// to remove.
func (p Pod) claim(v *corev1.Volume) error {
	c := p.Claims[v.Name]
	switch {
	case c.Err != nil:
		return c.Err
	case c.HostPath != nil:
		return p.hostPath(c.HostPath) // as the kubelet, without fsGroup
	case c.CSI:
		if !c.Own {
			return nil
		}
	case c.Directory != "":
		if err := makeOpen(c.Directory); err != nil {
			return err
		}
	default:
		directory := corev1.HostPathDirectory
		if err := p.hostPath(&corev1.HostPathVolumeSource{Path: c.Local, Type: &directory}); err != nil {
			return fmt.Errorf("local volume: %s is not a directory of this node: %w", c.Local, err)
		}
	}
	return p.own(v, p.path(v))
}

// makeOpen makes a directory that everybody may use, unless it is there.
func makeOpen(dir string) error {
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o777); err != nil {
		return err
	}
	return os.Chmod(dir, 0o777) // past the umask
}

// own gives a volume to the pod's fsGroup as the kubelet does, once per pod:
// everything in it belongs to the group, is readable and writable by it, and
// directories pass it on. With OnRootMismatch that is done only if it is not so
// at the root.
//
// Pods that are running may use the volume meanwhile and put links in the way:
// os.Root keeps every name inside, so that nothing outside is changed.
func (p Pod) own(v *corev1.Volume, dir string) error {
	sc := p.Spec.Spec.SecurityContext
	if sc.FSGroup == nil || v.PersistentVolumeClaim.ReadOnly {
		return nil
	}
	done := filepath.Join(p.Dir, "volumes", "kubernetes.io~local-volume", v.Name)
	if _, err := os.Lstat(done); err == nil {
		return nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	group := int(*sc.FSGroup)
	st, err := root.Stat(".")
	if err != nil {
		return err
	}
	if p := sc.FSGroupChangePolicy; p == nil || *p != corev1.FSGroupChangeOnRootMismatch || !owned(st, group) {
		if err := ownTree(root, group); err != nil {
			return fmt.Errorf("give %s to the fsGroup %d: %w", dir, group, err)
		}
	}
	return os.MkdirAll(done, 0o755)
}

// ownTree changes the root last: as long as it is not done, the root tells.
func ownTree(root *os.Root, group int) error {
	err := fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile
		}
		if err != nil || name == "." {
			return err
		}
		return ownOne(root, name, group)
	})
	if err != nil {
		return err
	}
	return ownOne(root, ".", group)
}

func ownOne(root *os.Root, name string, group int) error {
	st, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || owned(st, group) {
		return err
	}
	if err := root.Lchown(name, -1, group); err != nil || st.Mode()&fs.ModeSymlink != 0 {
		return err
	}
	mode := st.Mode() | 0o660
	if st.IsDir() {
		mode |= 0o110 | fs.ModeSetgid
	}
	return root.Chmod(name, mode)
}

// owned tells whether a file is as its volume's group needs it.
func owned(st fs.FileInfo, group int) bool {
	stat, ok := st.Sys().(*syscall.Stat_t)
	if !ok || stat.Gid != uint32(group) {
		return false
	}
	switch mode := st.Mode(); {
	case mode&fs.ModeSymlink != 0:
		return true
	case mode.IsDir():
		return mode&0o770 == 0o770 && mode&fs.ModeSetgid != 0
	default:
		return mode&0o660 == 0o660
	}
}
