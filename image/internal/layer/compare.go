package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Compare tells the first difference between a layer as it should be and as it
// is, in names, kinds, owners, modes, times, attributes and content, or "". The
// times of directories are left out: those without an entry have none.
func Compare(ctx context.Context, want, got *os.File) (difference string, err error) {
	c := comparison{ctx: ctx, a: make([]byte, 128<<10), b: make([]byte, 128<<10)}
	err = c.dirs(int(want.Fd()), int(got.Fd()), ".", 0)
	var d *differenceError
	if errors.As(err, &d) {
		return d.what, nil
	}
	return "", err
}

type comparison struct {
	ctx  context.Context
	a, b []byte
}

// differenceError ends a comparison.
type differenceError struct{ what string }

func (d *differenceError) Error() string { return d.what }

func differs(name, format string, args ...any) error {
	return &differenceError{fmt.Sprintf("%.300q: ", name) + fmt.Sprintf(format, args...)}
}

func (c *comparison) dirs(want, got int, name string, depth int) error {
	const deepest = 256 // two descriptors each
	if depth == deepest {
		return fmt.Errorf("%.300q: nested too deep to be compared", name)
	}
	names, err := allNames(want)
	if err != nil {
		return err
	}
	have, err := allNames(got)
	if err != nil {
		return err
	}
	for _, n := range names {
		if _, ok := slices.BinarySearch(have, n); !ok {
			return differs(name+"/"+n, "missing")
		}
	}
	if len(have) != len(names) {
		return differs(name, "%d names, not %d", len(have), len(names))
	}
	for _, n := range names {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if err := c.entry(want, got, n, name+"/"+n, depth); err != nil {
			return err
		}
	}
	return nil
}

func (c *comparison) entry(want, got int, base, name string, depth int) error {
	var w, g unix.Stat_t
	if err := unix.Fstatat(want, base, &w, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("stat %.300q: %w", name, err)
	}
	if err := unix.Fstatat(got, base, &g, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("stat %.300q: %w", name, err)
	}
	kind := w.Mode & unix.S_IFMT
	switch {
	case w.Mode != g.Mode:
		return differs(name, "mode %o, not %o", g.Mode, w.Mode)
	case w.Uid != g.Uid || w.Gid != g.Gid:
		return differs(name, "owner %d:%d, not %d:%d", g.Uid, g.Gid, w.Uid, w.Gid)
	case w.Rdev != g.Rdev:
		return differs(name, "device %#x, not %#x", g.Rdev, w.Rdev)
	case kind != unix.S_IFDIR && w.Size != g.Size:
		return differs(name, "%d bytes, not %d", g.Size, w.Size)
	case kind != unix.S_IFDIR && w.Mtim != g.Mtim && !isWhiteout(&w):
		return differs(name, "another modification time")
	}
	if err := sameXattrs(want, got, base, name); err != nil {
		return err
	}
	switch kind {
	case unix.S_IFLNK:
		a, err := readlinkat(want, base)
		if err != nil {
			return err
		}
		b, err := readlinkat(got, base)
		if err == nil && a != b {
			err = differs(name, "link to %.300q, not %.300q", b, a)
		}
		return err
	case unix.S_IFREG:
		return c.both(want, got, base, unix.O_NOFOLLOW, func(a, b *os.File) error { return c.content(a, b, name) })
	case unix.S_IFDIR:
		return c.both(want, got, base, unix.O_NOFOLLOW|unix.O_DIRECTORY, func(a, b *os.File) error {
			return c.dirs(int(a.Fd()), int(b.Fd()), name, depth+1)
		})
	}
	return nil
}

func (c *comparison) both(want, got int, base string, flags int, do func(a, b *os.File) error) error {
	a, err := unix.Openat(want, base, unix.O_RDONLY|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return err
	}
	fa := os.NewFile(uintptr(a), base)
	defer fa.Close()
	b, err := unix.Openat(got, base, unix.O_RDONLY|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return err
	}
	fb := os.NewFile(uintptr(b), base)
	defer fb.Close()
	return do(fa, fb)
}

func (c *comparison) content(a, b *os.File, name string) error {
	for {
		n, errA := io.ReadFull(a, c.a)
		m, errB := io.ReadFull(b, c.b)
		if !bytes.Equal(c.a[:n], c.b[:m]) {
			return differs(name, "other content")
		}
		if errA != nil || errB != nil {
			if errors.Is(errA, io.ErrUnexpectedEOF) || errA == io.EOF {
				errA = nil
			}
			if errors.Is(errB, io.ErrUnexpectedEOF) || errB == io.EOF {
				errB = nil
			}
			return errors.Join(errA, errB) // of one, EIO: a damaged disk
		}
	}
}

func sameXattrs(want, got int, base, name string) error {
	a, err := xattrsOf(fdPath(want) + "/" + base)
	if err != nil {
		return err
	}
	b, err := xattrsOf(fdPath(got) + "/" + base)
	if err != nil {
		return err
	}
	if !slices.Equal(a, b) {
		return differs(name, "other extended attributes")
	}
	return nil
}

// xattrsOf lists "name=value", sorted, without the host's own labels.
func xattrsOf(path string) ([]string, error) {
	n, err := unix.Llistxattr(path, nil)
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list xattrs: %w", err)
	}
	list := make([]byte, n)
	if n, err = unix.Llistxattr(path, list); err != nil {
		return nil, fmt.Errorf("list xattrs: %w", err)
	}
	var all []string
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(string(list[:n]), "\x00") {
		if name == "" || foreignXattr(name) && name != opaqueXattr {
			continue
		}
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("get xattr %.100q: %w", name, err)
		}
		all = append(all, name+"="+string(value[:n]))
	}
	slices.Sort(all)
	return all, nil
}

func allNames(fd int) ([]string, error) {
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		return nil, err
	}
	buf := make([]byte, 64<<10)
	var names []string
	for {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			slices.Sort(names)
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}
