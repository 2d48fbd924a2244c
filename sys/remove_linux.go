package sys

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// RemoveTree removes a file or a directory with all that is in it, however deep:
// a container can nest directories deeper than descriptors or stack would last,
// which os.RemoveAll needs one of for each. Three directories are open at a
// time: one further down is moved up first. It follows no link; the error is
// EXDEV if something is mounted inside. A missing path is no error.
func RemoveTree(path string) error {
	parent, err := os.Open(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := removeTree(int(parent.Fd()), filepath.Base(path)); err != nil {
		return &os.PathError{Op: "remove", Path: path, Err: err}
	}
	return nil
}

func removeTree(dir int, name string) error {
	isDir, err := unlink(dir, name)
	if err != nil || !isDir {
		return err
	}
	top, err := openDir(dir, name)
	if err != nil {
		return err
	}
	defer top.Close()
	moved := 0
	err = empty(top, func(name string) error {
		sub, err := openDir(int(top.Fd()), name)
		if err != nil {
			return err
		}
		defer sub.Close()
		err = empty(sub, func(deep string) error {
			// A mount may be in it, or on it: EBUSY.
			if err := checkDir(int(sub.Fd()), deep); err != nil {
				return err
			}
			err := unix.Unlinkat(int(sub.Fd()), deep, unix.AT_REMOVEDIR)
			for errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
				moved++
				err = unix.Renameat2(int(sub.Fd()), deep, int(top.Fd()), ".moved-"+strconv.Itoa(moved), unix.RENAME_NOREPLACE)
			}
			return err
		})
		if err != nil {
			return err
		}
		return unix.Unlinkat(int(top.Fd()), name, unix.AT_REMOVEDIR)
	})
	if err != nil {
		return err
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

// empty removes what is in a directory, each directory in it by remove.
func empty(d *os.File, remove func(name string) error) error {
	for {
		if _, err := d.Seek(0, io.SeekStart); err != nil {
			return err
		}
		names, err := d.Readdirnames(512)
		if len(names) == 0 {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		for _, n := range names {
			isDir, err := unlink(int(d.Fd()), n)
			if err == nil && isDir {
				err = remove(n)
			}
			if err != nil {
				return err
			}
		}
	}
}

// unlink removes a name that is not a directory, or says that it is one.
func unlink(dir int, name string) (isDir bool, err error) {
	err = unix.Unlinkat(dir, name, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return false, nil
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.EPERM):
		return true, nil
	}
	return false, err
}

// openDir opens a directory; EXDEV if something is mounted on it.
func openDir(dir int, name string) (*os.File, error) {
	fd, err := Openat2(dir, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func checkDir(dir int, name string) error {
	d, err := openDir(dir, name)
	if err == nil {
		d.Close()
	}
	return err
}
