package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func (u *unpacking) directory(parent *dir, name string, hdr *tar.Header) error {
	base := path.Base(name)
	opaque, made := false, true
	err := unix.Mkdirat(parent.fd, base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err := unix.Fstatat(parent.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			made, err = false, nil
		} else {
			// A whiteout before the directory hides what is below it.
			if opaque, err = u.clear(parent, base); err != nil {
				return fmt.Errorf("replace earlier entry: %w", err)
			}
			if parent, err = u.dirs.open(path.Dir(name)); err != nil {
				return err
			}
			parent.dirty = true
			err = unix.Mkdirat(parent.fd, base, 0o700)
		}
	}
	if err != nil {
		return err
	}
	if made {
		u.count(1)
	} else {
		u.explicit(name)
	}
	fd, err := unix.Openat(parent.fd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	d, err := u.dirs.keep(name, fd)
	if err != nil {
		return err
	}
	if opaque {
		if err := setOpaque(d.fd); err != nil {
			return err
		}
	}
	return u.dirAttributes(d, hdr)
}

// explicit takes a directory, made as somebody's parent, for mentioned after
// all: its attributes are now known.
func (u *unpacking) explicit(name string) {
	if i, ok := u.implicit[name]; ok {
		u.res.Implicit[i] = ""
		delete(u.implicit, name)
	}
}

func (u *unpacking) dirAttributes(d *dir, hdr *tar.Header) error {
	d.mtime, d.dirty = fileTime(hdr.ModTime), true
	return u.fdAttributes(d.fd, hdr)
}

func (u *unpacking) file(parent *dir, name string, hdr *tar.Header, content io.Reader) error {
	if hdr.Size > u.limits.Bytes-u.bytes {
		return badEntry("more than %d bytes in the layer", u.limits.Bytes)
	}
	var fd int
	_, err := u.replace(parent, name, func(dirfd int, base string) (err error) {
		fd, err = unix.Openat(dirfd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	u.count(hdr.Size)
	if err := u.content(fd, hdr, content); err != nil {
		return err
	}
	if err := u.fdAttributes(fd, hdr); err != nil {
		return err
	}
	return setTime(fd, fileTime(hdr.ModTime))
}

// content copies a file. Holes of a sparse file stay holes.
func (u *unpacking) content(fd int, hdr *tar.Header, content io.Reader) error {
	sparse := isSparse(hdr)
	var size int64
	for {
		n, err := content.Read(u.buf)
		b := u.buf[:n]
		size += int64(n)
		if sparse && allZero(b) {
			if _, err := unix.Seek(fd, int64(n), io.SeekCurrent); err != nil {
				return err
			}
			b = nil
			if err := u.ctx.Err(); err != nil { // a hole of terabytes reads fast but long
				return err
			}
		}
		for len(b) > 0 {
			m, err := unix.Write(fd, b)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return fmt.Errorf("write: %w", err)
			}
			b = b[m:]
		}
		u.bytes += int64(n)
		if u.progress != nil && n > 0 {
			u.progress(int64(n))
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return tarError(hdr.Name, err)
		}
	}
	if sparse {
		return unix.Ftruncate(fd, size)
	}
	return nil
}

func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range hdr.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// allZero compares the bytes with themselves, one further on: by words.
func allZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

// fdAttributes sets owner, mode and extended attributes, in this order: a
// chown clears set-id bits and file capabilities.
func (u *unpacking) fdAttributes(fd int, hdr *tar.Header) error {
	// Always, for an earlier entry may have set another owner; new files are
	// root's already.
	if hdr.Uid != 0 || hdr.Gid != 0 || hdr.Typeflag == tar.TypeDir {
		if err := unix.Fchown(fd, hdr.Uid, hdr.Gid); err != nil {
			return fmt.Errorf("chown: %w", err)
		}
	}
	if err := unix.Fchmod(fd, uint32(hdr.Mode)&0o7777); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	return u.xattrs(hdr, func(name string, value []byte) error {
		return unix.Fsetxattr(fd, name, value, 0)
	})
}

// pathAttributes sets extended attributes and times of what cannot be opened.
func (u *unpacking) pathAttributes(dirfd int, base string, hdr *tar.Header) error {
	err := u.xattrs(hdr, func(name string, value []byte) error {
		return unix.Lsetxattr(fdPath(dirfd)+"/"+base, name, value, 0)
	})
	if err != nil {
		return err
	}
	t := fileTime(hdr.ModTime)
	if err := unix.UtimesNanoAt(dirfd, base, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

const paxXattr = "SCHILY.xattr."

func (u *unpacking) xattrs(hdr *tar.Header, set func(string, []byte) error) error {
	var names []string
	for k := range hdr.PAXRecords {
		if strings.HasPrefix(k, paxXattr) {
			names = append(names, k)
		}
	}
	if len(names) > maxXattrs {
		return badEntry("%d extended attributes", len(names))
	}
	sort.Strings(names)
	for _, k := range names {
		name := strings.TrimPrefix(k, paxXattr)
		if foreignXattr(name) {
			u.drop(name)
			continue
		}
		err := set(name, []byte(hdr.PAXRecords[k]))
		if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) {
			// The filesystem has none, or not of this kind: user.* of a symlink.
			u.drop(name)
			continue
		}
		if err != nil {
			return fmt.Errorf("set xattr %.100q: %w", name, err)
		}
	}
	return nil
}

// foreignXattr tells attributes that an image has no business to set:
// overlayfs' own, with which a layer could redirect lookups, and labels that
// are the host's policy.
func foreignXattr(name string) bool {
	return strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") ||
		name == "security.selinux" || name == "security.ima" || name == "security.evm"
}

func (u *unpacking) drop(name string) {
	if u.res.Dropped == nil {
		u.res.Dropped = map[string]int{}
	}
	if len(name) > 64 || len(u.res.Dropped) > 32 {
		name = "other"
	}
	u.res.Dropped[name]++
}

// fileTime keeps a time within what filesystems can store.
func fileTime(t time.Time) unix.Timespec {
	const end = 1<<33 - 1
	sec := t.Unix()
	if t.IsZero() || sec < 0 {
		return unix.Timespec{}
	}
	if sec > end {
		return unix.Timespec{Sec: end}
	}
	return unix.Timespec{Sec: sec, Nsec: int64(t.Nanosecond())}
}

// removeAt removes the tree at base in the directory fd.
func removeAt(ctx context.Context, fd int, base string) error {
	isDir, err := unlink(fd, base)
	if err != nil || !isDir {
		return err
	}
	top, err := unix.Openat(fd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(top)
	if err := emptyTop(ctx, top); err != nil {
		return err
	}
	return unix.Unlinkat(fd, base, unix.AT_REMOVEDIR)
}
