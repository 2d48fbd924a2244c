package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/env"
	"podstead/sys"
)

// Options is what Mounts needs to know beside the pod.
type Options struct {
	Vars *env.Result // expands subPathExpr
	// RecursiveReadOnly: the runtime can mount so.
	RecursiveReadOnly bool
	// Images are the IDs of the images of image volumes, by volume name.
	Images map[string]string
}

// Mounts returns what a container mounts of the pod's volumes.
func (p Pod) Mounts(c *corev1.Container, o Options) ([]*runtimeapi.Mount, error) {
	var out []*runtimeapi.Mount
	for i, m := range c.VolumeMounts {
		v := p.find(m.Name)
		if v == nil {
			return nil, fmt.Errorf("volumeMounts[%d]: no volume %q", i, m.Name)
		}
		sub, err := subPath(&m, o.Vars)
		if err != nil {
			return nil, fmt.Errorf("volume %q: %w", m.Name, err)
		}
		if v.Image != nil {
			out = append(out, &runtimeapi.Mount{
				ContainerPath: path.Clean("/" + m.MountPath), Readonly: true, ImageSubPath: sub,
				Image: &runtimeapi.ImageSpec{Image: o.Images[v.Name], UserSpecifiedImage: v.Image.Reference},
			})
			continue
		}
		host := p.path(v)
		if sub != "" {
			if host, err = p.bindSubPath(v, sub, c.Name, i); err != nil {
				return nil, fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", m.Name, c.Name, err)
			}
		}
		mount := &runtimeapi.Mount{
			ContainerPath: path.Clean("/" + m.MountPath),
			HostPath:      host,
			Readonly: m.ReadOnly || shown(v) || v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly ||
				v.CSI != nil && v.CSI.ReadOnly != nil && *v.CSI.ReadOnly,
			Propagation: propagation(m.MountPropagation),
			// As the kubelet: what was made for the pod gets the pod's label.
			SelinuxRelabel: shown(v) || v.EmptyDir != nil || v.Ephemeral != nil,
		}
		if r := m.RecursiveReadOnly; r != nil {
			switch {
			case *r == corev1.RecursiveReadOnlyEnabled && !o.RecursiveReadOnly:
				return nil, fmt.Errorf("volume %q: recursiveReadOnly is Enabled and the runtime does not support it", m.Name)
			case *r != corev1.RecursiveReadOnlyDisabled:
				mount.RecursiveReadOnly = o.RecursiveReadOnly
			}
		}
		out = append(out, mount)
	}
	return out, nil
}

// shown tells whether a volume shows objects: those are read-only.
func shown(v *corev1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
}

func propagation(m *corev1.MountPropagationMode) runtimeapi.MountPropagation {
	if m != nil {
		switch *m {
		case corev1.MountPropagationHostToContainer:
			return runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		case corev1.MountPropagationBidirectional:
			return runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
		}
	}
	return runtimeapi.MountPropagation_PROPAGATION_PRIVATE
}

func subPath(m *corev1.VolumeMount, vars *env.Result) (string, error) {
	if m.SubPathExpr == "" {
		return m.SubPath, nil
	}
	missing := ""
	sub := env.Expand(m.SubPathExpr, func(name string) (string, bool) {
		v, ok := vars.Lookup(name)
		if !ok {
			missing = name
		}
		return v, ok
	})
	if missing != "" {
		return "", fmt.Errorf("subPathExpr: variable %q is not defined", missing)
	}
	if path.IsAbs(sub) || hasDotDot(sub) {
		return "", fmt.Errorf("subPathExpr: %q must be a relative path without '..'", sub)
	}
	return sub, nil
}

func hasDotDot(p string) bool {
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

// bindSubPath finds sub inside a volume, makes it a directory if it is not
// there, and binds it to a place of its own, from which the runtime mounts it:
// the pod may swap names in the volume at any time (CVE-2017-1002101,
// CVE-2021-25741), but not what a descriptor refers to.
func (p Pod) bindSubPath(v *corev1.Volume, sub, container string, index int) (string, error) {
	root, err := unix.Open(p.path(v), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: p.path(v), Err: err}
	}
	defer unix.Close(root)
	fd, err := openBeneath(root, sub, !shown(v))
	if err != nil {
		return "", fmt.Errorf("subPath %q: %w", sub, err)
	}
	defer unix.Close(fd)
	target := filepath.Join(p.Dir, "volume-subpaths", v.Name, container, strconv.Itoa(index))
	if err := release(target); err != nil {
		return "", err
	}
	if err := makeTarget(fd, target); err != nil {
		return "", err
	}
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(fd), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return "", fmt.Errorf("bind subPath %q to %s: %w", sub, target, err)
	}
	return target, nil
}

// openBeneath opens a path that may pass through links, but never leaves root.
func openBeneath(root int, sub string, create bool) (int, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := openat2(root, sub, how)
	if !errors.Is(err, unix.ENOENT) || !create {
		return fd, err
	}
	dir := root
	for part := range strings.SplitSeq(path.Clean(sub), "/") {
		next, err := openDir(dir, part)
		if dir != root {
			unix.Close(dir)
		}
		if err != nil {
			return -1, err
		}
		dir = next
	}
	return dir, nil
}

// openDir opens a directory below dir and makes it first if it is missing.
func openDir(dir int, name string) (int, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := openat2(dir, name, how)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	if err := unix.Mkdirat(dir, name, 0o750); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	how.Resolve |= unix.RESOLVE_NO_SYMLINKS
	if fd, err = openat2(dir, name, how); err != nil {
		return -1, err
	}
	// Like its parent: a volume's group and mode are the pod's to use.
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err == nil {
		self := "/proc/self/fd/" + strconv.Itoa(fd)
		err = errors.Join(os.Chown(self, -1, int(st.Gid)), unix.Chmod(self, st.Mode&0o7777))
		if err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

func openat2(dir int, name string, how *unix.OpenHow) (int, error) {
	fd, err := sys.Openat2(dir, name, how)
	if err != nil {
		return -1, &os.PathError{Op: "openat2", Path: name, Err: err}
	}
	return fd, nil
}

// makeTarget makes the file or directory that fd is bound to.
func makeTarget(fd int, target string) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return os.Mkdir(target, 0o755)
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	return f.Close()
}

// release undoes a bind to target, of an earlier instance of the container.
func release(target string) error {
	for sys.IsMount(target) {
		if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
