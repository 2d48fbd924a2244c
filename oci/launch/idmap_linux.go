package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"podstead/sys"
)

// open makes a user namespace with the maps and returns a descriptor of it.
// A child that parks at once, and is ended when the namespace is held, is what
// it takes.
func (m *idMaps) open() (*os.File, error) {
	p := &Program{
		id: "idmap", cgroup: -1, pidns: -1, clone: unix.CLONE_NEWUSER, maps: m,
		ops: []op{{call: cWaitMaps, out: noReg}, {call: cPrepared, out: noReg}},
	}
	c, err := Fork(p, nil, Stdio{})
	if err != nil {
		return nil, fmt.Errorf("make a user namespace for an idmapped mount: %w", err)
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", c.Pid))
	err = errors.Join(err, c.Abandon())
	reap(c.Pid)
	c.Pidfd.Close()
	if err != nil {
		return nil, err
	}
	return f, nil
}

// idmapMount maps the ids of a detached mount.
func idmapMount(fd int, m *idMaps, recursive bool) error {
	if m == nil {
		return nil
	}
	ns, err := m.open()
	if err != nil {
		return err
	}
	defer ns.Close()
	return setMountAttr(fd, recursive, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())})
}

// layer is a directory of an overlay, by path or, idmapped, by descriptor.
type layer struct {
	path string
	fd   int // -1: by path
}

// set gives a layer to an overlay under construction. Kernels before 6.13 take
// no descriptors, but a path that leads to one.
func (l layer) set(ctx int, key string) error {
	if l.fd < 0 {
		return unix.FsconfigSetString(ctx, key, l.path)
	}
	err := unix.FsconfigSetFd(ctx, key, l.fd)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EBADF) {
		err = unix.FsconfigSetString(ctx, key, fmt.Sprintf("/proc/self/fd/%d", l.fd))
	}
	return err
}

// openIDMapped mounts an overlay with idmapped layers. The kernel takes layers
// only from the caller's own mount namespace: for the moment of mounting, this
// is one that ends with the thread.
func (s *slot) openIDMapped() (f *os.File, err error) {
	userns, err := s.idmap.open()
	if err != nil {
		return nil, err
	}
	defer userns.Close()
	err = sys.OnDisposableThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("unshare mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		lower, upper, work, closeAll, err := s.idmapLayers(int(userns.Fd()))
		defer closeAll()
		if err != nil {
			return fmt.Errorf("overlay layer %w", err)
		}
		if err := s.idmap.becomeRoot(); err != nil {
			return err
		}
		f, err = s.mountOverlay(lower, upper, work)
		return err
	})
	return f, err
}

// becomeRoot makes the thread access files as the root of the user namespace,
// with all capabilities that it has: the overlay works with the identity of
// its mounter, and the host's root has no id on an idmapped mount.
func (m *idMaps) becomeRoot() error {
	uid, gid := hostRoot(m.UID), hostRoot(m.GID)
	if uid < 0 || gid < 0 {
		return errors.New("the mappings have no root")
	}
	if err := unix.Setfsgid(gid); err != nil {
		return os.NewSyscallError("setfsgid", err)
	}
	if err := unix.Setfsuid(uid); err != nil {
		return os.NewSyscallError("setfsuid", err)
	}
	// The change took the capabilities that override file permissions.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	for i := range caps {
		caps[i].Effective = caps[i].Permitted
	}
	return os.NewSyscallError("capset", unix.Capset(&header, &caps[0]))
}

// hostRoot returns the host's id for id 0, -1 if it has none.
func hostRoot(maps string) int {
	for line := range strings.Lines(maps) {
		var inside, host, size int
		if n, _ := fmt.Sscan(line, &inside, &host, &size); n == 3 && inside == 0 {
			return host
		}
	}
	return -1
}

// idmapLayers opens the layers of an overlay as idmapped mounts. Upper and
// work directory must be of one mount: the one of the directory they are both in.
func (s *slot) idmapLayers(userns int) (lower []layer, upper, work layer, closeAll func(), err error) {
	var fds []int
	closeAll = func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
	upper, work = layer{s.upper, -1}, layer{s.work, -1}
	tree := func(dir string) (int, error) {
		fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return -1, fmt.Errorf("%s: %w", dir, err)
		}
		fds = append(fds, fd)
		err = setMountAttr(fd, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns)})
		if err != nil {
			return -1, fmt.Errorf("%s: idmap: %w", dir, err)
		}
		return fd, nil
	}
	// Mounts are attached one on top of the other: only their descriptors are used.
	attach := func() error {
		for _, fd := range fds {
			if err := unix.MoveMount(fd, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
				return fmt.Errorf("attach: %w", err)
			}
		}
		return nil
	}
	for _, dir := range s.lower {
		fd, err := tree(dir)
		if err != nil {
			return nil, upper, work, closeAll, err
		}
		lower = append(lower, layer{dir, fd})
	}
	if s.upper == "" {
		return lower, upper, work, closeAll, attach()
	}
	parent, err := tree(filepath.Dir(s.upper))
	if err != nil {
		return nil, upper, work, closeAll, err
	}
	if err := attach(); err != nil {
		return nil, upper, work, closeAll, err
	}
	for _, l := range []*layer{&upper, &work} {
		if l.fd, err = unix.Openat(parent, filepath.Base(l.path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return nil, upper, work, closeAll, fmt.Errorf("%s: %w", l.path, err)
		}
		fds = append(fds, l.fd)
	}
	return lower, upper, work, closeAll, nil
}
