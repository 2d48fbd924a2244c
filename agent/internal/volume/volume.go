// Package volume makes the volumes of pods on the node: emptyDir, hostPath,
// claims of persistent storage and the ones that show ConfigMaps, Secrets and
// facts of the pod as files, and it finds sub-paths in them safely. It is called by the pod's worker, one call at
// a time per pod. Everything is below the pod's directory, survives a restart of
// the agent, and is made anew after a reboot where it was in memory; Setup can
// be repeated at any time and brings files up to date.
package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/env"
	"podstead/agent/internal/hostpath"
	"podstead/agent/internal/request"
	"podstead/sys"
	"podstead/sys/quota"
)

// Pod is the volumes of one pod.
type Pod struct {
	Dir    string // the pod's directory, e.g. /var/lib/podstead/pods/UID
	Spec   *corev1.Pod
	Claims map[string]Claim // by volume name, for each persistentVolumeClaim
	// Watch, if not nil, is called as Setup begins with a volume; the function that
	// it returns, when that is done.
	Watch func(what string) (done func(error))
	// HostPath checks that a path of the host is of a type, and makes what is to be
	// made; nil: hostpath.Check does.
	HostPath func(path string, kind corev1.HostPathType) error
	// Projects counts what is in emptyDirs on disk; nil: nobody does.
	Projects *quota.Pool
}

// NotReady says what a volume waits for, in the kubelet's words; it is tried
// again when the object appears.
type NotReady struct {
	Volume string
	Err    error
}

func (e *NotReady) Error() string {
	return fmt.Sprintf("MountVolume.SetUp failed for volume %q : %v", e.Volume, e.Err)
}
func (e *NotReady) Unwrap() error { return e.Err }

// Setup makes all volumes that are not there and updates those whose files
// changed. It goes on after a volume that fails and returns all errors.
func (p Pod) Setup(objs env.Objects, facts env.Facts) error {
	var errs []error
	for i := range p.Spec.Spec.Volumes {
		v := &p.Spec.Spec.Volumes[i]
		done := p.watch(v)
		err := p.setup(v, objs, facts)
		done(err)
		if err != nil {
			errs = append(errs, &NotReady{Volume: v.Name, Err: err})
		}
	}
	return errors.Join(errs...)
}

// watch tells who watches that a volume is begun with: it may be on a file system
// that does not answer.
func (p Pod) watch(v *corev1.Volume) func(error) {
	if p.Watch == nil {
		return func(error) {}
	}
	what := "volume " + v.Name
	if v.HostPath != nil || v.PersistentVolumeClaim != nil {
		what += " (" + p.path(v) + ")"
	}
	return p.Watch(what)
}

func (p Pod) setup(v *corev1.Volume, objs env.Objects, facts env.Facts) error {
	switch {
	case v.HostPath != nil:
		return p.hostPath(v.HostPath)
	case v.EmptyDir != nil, v.Ephemeral != nil:
		return p.emptyDir(v)
	case v.PersistentVolumeClaim != nil:
		return p.claim(v)
	case v.Image != nil:
		return nil // the runtime mounts it
	case v.CSI != nil:
		return nil // its driver has mounted it
	}
	files, mode, err := payload(p.Spec, v, objs, facts)
	dir := p.path(v)
	if err != nil {
		// What containers see stays as it is while an object is away.
		if _, statErr := os.Lstat(filepath.Join(dir, dataLink)); statErr == nil && p.alive(v, dir) {
			return nil
		}
		return err
	}
	if v.Secret != nil || v.Projected != nil {
		err = mountTmpfs(dir, 0, 0o777, nil)
	} else {
		err = os.MkdirAll(dir, 0o777)
	}
	if err != nil {
		return err
	}
	return write(dir, files, mode, p.Spec.Spec.SecurityContext.FSGroup)
}

// alive tells whether a volume in memory is still mounted (it is not after a
// reboot); volumes on disk always are.
func (p Pod) alive(v *corev1.Volume, dir string) bool {
	return v.ConfigMap != nil || v.DownwardAPI != nil || sys.IsMount(dir)
}

// path is where on the host a volume is.
func (p Pod) path(v *corev1.Volume) string {
	plugin := "empty-dir"
	switch {
	case v.HostPath != nil:
		return v.HostPath.Path
	case v.CSI != nil, p.Claims[v.Name].CSI:
		return filepath.Join(p.CSI(v.Name), "mount")
	case v.PersistentVolumeClaim != nil:
		return p.Claims[v.Name].path()
	case v.Ephemeral != nil:
		plugin = "ephemeral"
	case v.Secret != nil:
		plugin = "secret"
	case v.ConfigMap != nil:
		plugin = "configmap"
	case v.DownwardAPI != nil:
		plugin = "downward-api"
	case v.Projected != nil:
		plugin = "projected"
	}
	return filepath.Join(p.Dir, "volumes", "kubernetes.io~"+plugin, v.Name)
}

// CSI is the directory of a volume that a CSI driver mounts; with "" that of all
// of them.
func (p Pod) CSI(name string) string {
	return filepath.Join(p.Dir, "volumes", "kubernetes.io~csi", name)
}

func (p Pod) find(name string) *corev1.Volume {
	for i := range p.Spec.Spec.Volumes {
		if p.Spec.Spec.Volumes[i].Name == name {
			return &p.Spec.Spec.Volumes[i]
		}
	}
	return nil
}

// emptyDir makes an empty directory, of the pod's fsGroup if it has one: the
// set-group-ID bit makes what comes later belong to the group too. Once it is
// there it is the pod's: its containers may put links to the host's files where
// directories were, so nothing in it is ever changed from outside.
func (p Pod) emptyDir(v *corev1.Volume) error {
	dir, group := p.path(v), p.Spec.Spec.SecurityContext.FSGroup
	if v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumMemory {
		return mountTmpfs(dir, p.memorySize(v), emptyDirMode(v, group), group)
	}
	if v.EmptyDir != nil && strings.HasPrefix(string(v.EmptyDir.Medium), string(corev1.StorageMediumHugePages)) {
		return p.mountHugePages(v, dir, group)
	}
	if _, err := os.Lstat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if group != nil {
		if err := os.Lchown(dir, -1, int(*group)); err != nil {
			return err
		}
	}
	if err := unix.Chmod(dir, emptyDirMode(v, group)); err != nil { // past the umask
		return &fs.PathError{Op: "chmod", Path: dir, Err: err}
	}
	if p.Projects != nil && v.EmptyDir != nil {
		_ = p.Projects.Add(dir) // without, it is measured by a walk
	}
	return nil
}

// emptyDirMode are the bits of an emptyDir: everybody's, or what it asks for; of
// its group, if there is one, in any case.
func emptyDirMode(v *corev1.Volume, group *int64) uint32 {
	mode := uint32(0o777)
	if v.EmptyDir != nil && v.EmptyDir.Mode != nil {
		mode = uint32(*v.EmptyDir.Mode)
	}
	if group != nil {
		mode |= unix.S_ISGID | 0o770
	}
	return mode
}

// mountHugePages mounts a hugetlbfs at dir unless one is there.
func (p Pod) mountHugePages(v *corev1.Volume, dir string, group *int64) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if sys.IsMount(dir) {
		return nil
	}
	size, ok := request.HugePageSize(string(v.EmptyDir.Medium))
	if sizes := request.HugePageSizes(p.Spec); !ok && len(sizes) > 0 {
		size = sizes[0] // the only one
	}
	options := fmt.Sprintf("mode=%#o,pagesize=%d", emptyDirMode(v, group), size)
	if group != nil {
		options += fmt.Sprintf(",gid=%d", *group)
	}
	if q := v.EmptyDir.SizeLimit; q != nil && q.Sign() > 0 {
		options += fmt.Sprintf(",size=%d", q.Value())
	}
	if err := unix.Mount("hugetlbfs", dir, "hugetlbfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount huge pages of %d bytes at %s: %w", size, dir, err)
	}
	return nil
}

// memorySize is the size of an emptyDir in memory: its limit, and no more than
// the pod may use in all; 0 is the kernel's default of half the memory.
func (p Pod) memorySize(v *corev1.Volume) int64 {
	total, all := int64(0), true
	for _, c := range p.Spec.Spec.Containers {
		q, ok := c.Resources.Limits[corev1.ResourceMemory]
		all = all && ok
		total += q.Value()
	}
	if !all {
		total = 0
	}
	if q := v.EmptyDir.SizeLimit; q != nil && q.Sign() > 0 && (total == 0 || q.Value() < total) {
		return q.Value()
	}
	return total
}

// mountTmpfs mounts a tmpfs with these bits at dir unless one is there; it belongs
// to group if that is given.
func mountTmpfs(dir string, size int64, mode uint32, group *int64) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if sys.IsMount(dir) {
		return nil
	}
	options := fmt.Sprintf("mode=%#o", mode)
	if group != nil {
		options += fmt.Sprintf(",gid=%d", *group)
	}
	if size > 0 {
		options += fmt.Sprintf(",size=%d", size)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options+",noswap"); err != nil {
		// noswap is Linux 6.4's.
		if err = unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
			return fmt.Errorf("mount tmpfs at %s: %w", dir, err)
		}
	}
	return nil
}

func (p Pod) hostPath(h *corev1.HostPathVolumeSource) error {
	if h.Type == nil || *h.Type == corev1.HostPathUnset {
		return nil
	}
	if p.HostPath != nil {
		return p.HostPath(h.Path, *h.Type)
	}
	return hostpath.Check(h.Path, *h.Type)
}
