package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// RemoveAll removes the tree at path, however deep: a hostile layer can nest
// directories deeper than any path or set of descriptors is long. It keeps two
// directories open: one that is further down is moved up first. It follows no
// link and crosses into no mount. A missing path is no error.
func RemoveAll(ctx context.Context, path string) error {
	top, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return os.Remove(path)
	}
	if err != nil {
		return &os.PathError{Op: "remove", Path: path, Err: err}
	}
	defer unix.Close(top)
	if err := emptyTop(ctx, top); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return os.Remove(filepath.Clean(path))
}

// emptyTop empties the directory top: files go at once, directories too unless
// they hold directories that are not empty; those are moved up into top and
// are met again.
func emptyTop(ctx context.Context, top int) error {
	moved := 0
	for {
		names, err := readNames(top)
		if err != nil || len(names) == 0 {
			return err
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return err
			}
			isDir, err := unlink(top, name)
			if err != nil {
				return err
			}
			if !isDir {
				continue
			}
			if err := emptyInto(ctx, top, name, &moved); err != nil {
				return err
			}
			if err := unix.Unlinkat(top, name, unix.AT_REMOVEDIR); err != nil {
				return fmt.Errorf("rmdir %.200q: %w", name, err)
			}
		}
	}
}

// emptyInto empties top/name; its directories that are not empty go to top.
func emptyInto(ctx context.Context, top int, name string, moved *int) error {
	fd, err := unix.Openat(top, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %.200q: %w", name, err)
	}
	defer unix.Close(fd)
	for {
		names, err := readNames(fd)
		if err != nil || len(names) == 0 {
			return err
		}
		for _, n := range names {
			if err := ctx.Err(); err != nil {
				return err
			}
			isDir, err := unlink(fd, n)
			if err != nil {
				return err
			}
			if !isDir {
				continue
			}
			err = unix.Unlinkat(fd, n, unix.AT_REMOVEDIR)
			for err == unix.ENOTEMPTY || err == unix.EEXIST {
				*moved++
				err = unix.Renameat2(fd, n, top, ".moved-"+strconv.Itoa(*moved), unix.RENAME_NOREPLACE)
			}
			if err != nil {
				return fmt.Errorf("remove directory %.200q: %w", n, err)
			}
		}
	}
}

// unlink removes a name that is not a directory, or says that it is one.
func unlink(fd int, name string) (isDir bool, err error) {
	err = unix.Unlinkat(fd, name, 0)
	switch {
	case err == nil || err == unix.ENOENT:
		return false, nil
	case err == unix.EISDIR:
		return true, nil
	}
	return false, fmt.Errorf("unlink %.200q: %w", name, err)
}

// readNames returns up to some thousand names of a directory, from its start.
func readNames(fd int) ([]string, error) {
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		return nil, err
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return nil, err
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		if len(names) > 0 {
			return names, nil // without "." and ".."
		}
	}
}
