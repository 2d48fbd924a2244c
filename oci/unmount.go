package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A container without a mount namespace of its own leaves its root mounted at
// root.path, of our namespace or of the one that it has joined.

// noteRootMount finds out which mount is at root.path before the container's is.
func (c *container) noteRootMount(spec *specs.Spec) error {
	return c.whereMountsAre(spec, func(path string) (err error) {
		c.RootMount, err = mountAt(path)
		return err
	})
}

// unmountRoot detaches what the container has mounted at root.path, with all
// below.
func (c *container) unmountRoot(spec *specs.Spec) error {
	return c.whereMountsAre(spec, func(path string) error {
		now, err := mountAt(path)
		if err != nil || now == c.RootMount {
			return err
		}
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
		return nil
	})
}

// whereMountsAre calls f with root.path where the mounts of a container without a
// mount namespace of its own are, unless that is gone.
func (c *container) whereMountsAre(spec *specs.Spec, f func(path string) error) error {
	if hasPrivate(spec, specs.MountNamespace) {
		return nil
	}
	resolved := func() error {
		path, err := filepath.EvalSymlinks(c.Rootfs)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return f(path)
	}
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.MountNamespace {
			return inMountNamespace(ns.Path, resolved)
		}
	}
	return resolved()
}

// mountAt is the number of the mount that is on top at a path; since Linux 6.8 no
// other gets the same later.
func mountAt(path string) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID|unix.STATX_MNT_ID_UNIQUE, &st); err != nil {
		return 0, fmt.Errorf("statx %s: %w", path, err)
	}
	return st.Mnt_id, nil
}

// inMountNamespace runs f in a mount namespace, on a thread that ends with it. A
// namespace that is gone has taken its mounts along.
func inMountNamespace(path string, f func() error) error {
	ns, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread is not fit for anything else
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS)
		}
		if err != nil {
			done <- fmt.Errorf("join mount namespace %s: %w", path, err)
			return
		}
		done <- f()
	}()
	return <-done
}
