package volume

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Remove unmounts and removes the pod's directory. It never deletes across a
// mount: what is mounted there by others is named in the error, and all stays.
func Remove(dir string) error {
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if !ours(dir, m) {
			continue
		}
		if err := unix.Unmount(m, unix.UMOUNT_NOFOLLOW); err != nil {
			// In use from within a container that is going away.
			if err = unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("unmount %s: %w", m, err)
			}
		}
	}
	if left, err := mountsBelow(dir); err != nil || len(left) > 0 {
		if err == nil {
			err = mounted(dir, left)
		}
		return err
	}
	parent, err := os.Open(filepath.Dir(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	err = removeTree(int(parent.Fd()), filepath.Base(dir))
	if errors.Is(err, unix.EXDEV) {
		left, _ := mountsBelow(dir)
		return mounted(dir, left)
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

func mounted(dir string, left []string) error {
	return fmt.Errorf("remove %s: something is mounted in it (%s); unmount it, nothing behind it was deleted", dir, strings.Join(left, ", "))
}

// ours tells whether a mount is one that Setup or Mounts made.
func ours(dir, mount string) bool {
	rel, err := filepath.Rel(dir, mount)
	if err != nil {
		return false
	}
	parts := strings.Split(rel, "/")
	return (parts[0] == "volumes" && len(parts) == 3) || (parts[0] == "volume-subpaths" && len(parts) == 4)
}

// mountsBelow lists the mount points below dir, deepest first.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		real = dir
	}
	var out []string
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		fields := strings.Fields(sc.Text())
		if len(fields) < 5 {
			continue
		}
		at := unescape(fields[4])
		if rel, ok := strings.CutPrefix(at, real+"/"); ok {
			out = append(out, filepath.Join(dir, rel))
		}
	}
	slices.Reverse(out)
	slices.SortStableFunc(out, func(a, b string) int { return strings.Count(b, "/") - strings.Count(a, "/") })
	return out, sc.Err()
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// removeTree removes name below dir, however deep it is: containers can nest
// directories deeper than descriptors or stack would last. Three directories
// are open at a time: one further down is moved up first. EXDEV if something
// is mounted inside.
func removeTree(dir int, name string) error {
	isDir, err := unlink(dir, name)
	if err != nil || !isDir {
		return err
	}
	top, err := openTree(dir, name)
	if err != nil {
		return err
	}
	defer top.Close()
	moved := 0
	err = empty(top, func(name string) error {
		sub, err := openTree(int(top.Fd()), name)
		if err != nil {
			return err
		}
		defer sub.Close()
		err = empty(sub, func(deep string) error {
			// A mount may be in it, or on it: EBUSY.
			if err := checkTree(int(sub.Fd()), deep); err != nil {
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

// openTree opens a directory; EXDEV if something is mounted on it.
func openTree(dir int, name string) (*os.File, error) {
	fd, err := openat2(dir, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func checkTree(dir int, name string) error {
	d, err := openTree(dir, name)
	if err == nil {
		d.Close()
	}
	return err
}
