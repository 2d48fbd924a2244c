package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"podstead/sys"
)

// SaveDiff writes what an overlay's upper directory changes, as rootfs-diff.tar
// and deleted.files. lower are the directories below, top first. Nobody may
// write to upper meanwhile.
func (d Dir) SaveDiff(ctx context.Context, upper string, lower []string) (err error) {
	f, err := os.OpenFile(d.path(DiffFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := diffWriter{tar: tar.NewWriter(f), upper: upper, lower: lower, links: map[[2]uint64]string{}, deleted: []string{}}
	err = filepath.WalkDir(upper, func(p string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || p == upper {
			return err
		}
		rel, err := filepath.Rel(upper, p)
		if err != nil {
			return err
		}
		if err := w.add(p, rel); err != nil {
			return fmt.Errorf("changed file %s: %w", rel, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := w.tar.Close(); err != nil {
		return err
	}
	if len(w.deleted) == 0 {
		return nil
	}
	return d.write(DeletedFile, w.deleted)
}

type diffWriter struct {
	tar     *tar.Writer
	upper   string
	lower   []string
	links   map[[2]uint64]string // device and inode to the first name
	deleted []string
}

func (w *diffWriter) add(p, rel string) error {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return err
	}
	h := &tar.Header{
		Name: rel, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX, PAXRecords: map[string]string{},
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK:
		if st.Rdev == 0 && st.Mode&unix.S_IFMT == unix.S_IFCHR { // a whiteout
			w.deleted = append(w.deleted, rel)
			return nil
		}
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, rel+"/"
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		var err error
		if h.Linkname, err = os.Readlink(p); err != nil {
			return err
		}
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
		if st.Nlink > 1 {
			id := [2]uint64{uint64(st.Dev), st.Ino}
			if first, ok := w.links[id]; ok {
				h.Typeflag, h.Size, h.Linkname = tar.TypeLink, 0, first
			} else {
				w.links[id] = rel
			}
		}
	default: // a socket is of nobody after a restore but CRIU's
		return nil
	}
	opaque, err := w.attributes(p, h)
	if err != nil {
		return err
	}
	if opaque {
		if err := w.deleteBelow(rel); err != nil {
			return err
		}
	}
	return w.write(h, p)
}

func (w *diffWriter) write(h *tar.Header, p string) error {
	if err := w.tar.WriteHeader(h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	f, err := openRegular(p)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(w.tar, f, h.Size)
	return err
}

// attributes adds extended attributes, without those of the overlay, of which
// only that a directory hides those below can be said otherwise.
func (w *diffWriter) attributes(p string, h *tar.Header) (opaque bool, err error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, name := range strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			return false, fmt.Errorf("attribute %s: %w", name, err)
		}
		own, isOverlay := strings.CutPrefix(name, "trusted.overlay.")
		switch {
		case own == "opaque" && isOverlay:
			opaque = string(value[:n]) == "y"
		case own == "redirect" || own == "metacopy":
			return false, fmt.Errorf("attribute %s: such a change cannot be put into a checkpoint", name)
		case isOverlay || name == "security.selinux":
		default:
			h.PAXRecords["SCHILY.xattr."+name] = string(value[:n])
		}
	}
	return opaque, nil
}

// deleteBelow lists what a directory that hides those below has not itself.
func (w *diffWriter) deleteBelow(rel string) error {
	for _, l := range w.lower {
		entries, err := readDirBeneath(l, rel)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue
		}
		if err != nil {
			return err
		}
		for _, name := range entries {
			p := filepath.Join(rel, name)
			if _, err := os.Lstat(filepath.Join(w.upper, p)); err != nil && !slices.Contains(w.deleted, p) {
				w.deleted = append(w.deleted, p)
			}
		}
	}
	return nil
}

func readDirBeneath(dir, rel string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fd, err := sys.Openat2(int(d.Fd()), rel, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), rel)
	defer f.Close()
	return f.Readdirnames(-1)
}

// ApplyDeleted makes the whiteouts of deleted files in an upper directory. The
// names are an attacker's: none leads out of it, and no link is followed.
func ApplyDeleted(upper string, names []string) error {
	root, err := os.Open(upper)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, name := range names {
		name = strings.TrimPrefix(filepath.Clean("/"+name), "/")
		if name == "" {
			return fmt.Errorf("%s: the root is deleted: %w", DeletedFile, ErrFormat)
		}
		if err := whiteout(root, name); err != nil {
			return fmt.Errorf("delete %.200q: %w", name, err)
		}
	}
	return nil
}

// whiteout marks a file as deleted. Parents that are missing are made.
func whiteout(root *os.File, name string) error {
	dir, base := filepath.Split(name)
	at, err := unix.FcntlInt(root.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	defer func() { unix.Close(at) }()
	for _, part := range strings.Split(strings.Trim(dir, "/"), "/") {
		if part == "" {
			continue
		}
		if err := unix.Mkdirat(at, part, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		next, err := unix.Openat(at, part, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		unix.Close(at)
		at = next
	}
	err = unix.Mknodat(at, base, unix.S_IFCHR, 0)
	if errors.Is(err, unix.EEXIST) { // changed after all: that counts
		return nil
	}
	return err
}
