package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
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
	if errors.Is(err, unix.EINVAL) {
		err = unix.FsconfigSetString(ctx, key, fmt.Sprintf("/proc/self/fd/%d", l.fd))
	}
	return err
}

// idmapLayers opens the layers of an overlay as idmapped mounts. Upper and
// work directory must be of one mount: the one of the directory they are both in.
func (s *slot) idmapLayers() (lower []layer, upper, work layer, closeAll func(), err error) {
	var fds []int
	closeAll = func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
	upper, work = layer{s.upper, -1}, layer{s.work, -1}
	if s.idmap == nil {
		for _, dir := range s.lower {
			lower = append(lower, layer{dir, -1})
		}
		return lower, upper, work, closeAll, nil
	}
	ns, err := s.idmap.open()
	if err != nil {
		return nil, upper, work, closeAll, err
	}
	defer ns.Close()
	tree := func(dir string) (int, error) {
		fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return -1, fmt.Errorf("%s: %w", dir, err)
		}
		fds = append(fds, fd)
		err = setMountAttr(fd, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())})
		if err != nil {
			return -1, fmt.Errorf("%s: idmap: %w", dir, err)
		}
		return fd, nil
	}
	for _, dir := range s.lower {
		fd, err := tree(dir)
		if err != nil {
			return nil, upper, work, closeAll, err
		}
		lower = append(lower, layer{dir, fd})
	}
	if s.upper == "" {
		return lower, upper, work, closeAll, nil
	}
	parent, err := tree(filepath.Dir(s.upper))
	if err != nil {
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
