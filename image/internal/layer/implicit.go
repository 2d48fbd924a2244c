package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"podstead/sys"
)

// FixImplicit corrects the directories that Unpack had to make up. An archive
// may hold "tmp/x" without an entry for "tmp": in the image, tmp must then stay
// as the layers below have it, with their mode and owner; and if it is a
// symbolic link there, x belongs to where the link leads, and no directory may
// stand in the link's place. Runtimes that unpack onto the layers below get
// this from the kernel, but can only unpack one layer after the other.
//
// root is the layer, lower the layers below it, top first.
func FixImplicit(root *os.File, lower []*os.File, implicit []string) error {
	f := &fixer{root: int(root.Fd()), queue: slices.Clone(implicit)}
	for _, l := range lower {
		f.lower = append(f.lower, int(l.Fd()))
	}
	f.dirs = newDirs(f.root, func(name string) error {
		f.queue = append(f.queue, name)
		return nil
	})
	for i := 0; i < len(f.queue); i++ { // it may grow
		if err := f.fix(f.queue[i]); err != nil {
			return errors.Join(&FormatError{Entry: f.queue[i], Err: err}, f.dirs.flush())
		}
	}
	return f.dirs.flush()
}

type fixer struct {
	root  int
	lower []int
	dirs  *dirs
	queue []string // implicit directories that are still to be looked at
	moves int
}

func (f *fixer) fix(name string) error {
	fd, err := sys.Openat2(f.root, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // replaced by a later entry, or moved
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	below, st, err := f.lookup(name)
	if err != nil || below < 0 {
		return err
	}
	defer unix.Close(below)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return copyAttributes(fd, below, st)
	case unix.S_IFLNK:
		var buf [maxName]byte
		n, err := unix.Readlinkat(below, "", buf[:])
		if err != nil {
			return err
		}
		return f.relocate(fd, name, linkTarget(name, string(buf[:n])))
	}
	return nil // a file, which the directory replaces
}

// lookup finds what the layers below show at a name: an O_PATH descriptor, or
// -1 if they have nothing there that could be seen through this layer.
func (f *fixer) lookup(name string) (fd int, st unix.Stat_t, err error) {
	layers := slices.Clone(f.lower)
	own := f.root
	defer func() {
		if own != f.root {
			unix.Close(own)
		}
		closeDirs(layers, f.lower)
	}()
	parts := strings.Split(name, "/")
	for i, part := range parts {
		last := i == len(parts)-1
		if own, err = step(own, part, own != f.root); err != nil {
			return -1, st, err
		}
		if isOpaque(own) {
			return -1, st, nil
		}
		next, err := descend(layers, part)
		closeDirs(layers, f.lower)
		layers = next
		if err != nil || len(layers) == 0 {
			return -1, st, err
		}
		if err := unix.Fstat(layers[0], &st); err != nil {
			return -1, st, err
		}
		if last {
			break
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return -1, st, nil // this layer put a directory in its place
		}
	}
	fd = layers[0]
	layers = layers[1:]
	return fd, st, nil
}

// step opens a directory of the layer itself and closes the one it came from.
func step(dir int, name string, closeIt bool) (int, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if closeIt {
		unix.Close(dir)
	}
	return fd, err
}

// descend opens a name in the directories that overlayfs would merge, top
// first, and returns those that it would merge in turn, or the one thing that
// is no directory.
func descend(dirs []int, name string) (found []int, err error) {
	for _, d := range dirs {
		fd, err := unix.Openat(d, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			closeDirs(found, nil)
			return nil, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
			closeDirs(found, nil)
			return nil, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if len(found) == 0 && !isWhiteout(&st) {
				return []int{fd}, nil
			}
			unix.Close(fd)
			return found, nil
		}
		found = append(found, fd)
		if isOpaque(fd) {
			return found, nil
		}
	}
	return found, nil
}

// closeDirs closes descriptors, unless they are those to be kept.
func closeDirs(fds, keep []int) {
	for _, fd := range fds {
		if !slices.Contains(keep, fd) {
			unix.Close(fd)
		}
	}
}

func isOpaque(fd int) bool {
	var b [2]byte
	n, err := unix.Getxattr(fdPath(fd), opaqueXattr, b[:])
	return err == nil && n == 1 && b[0] == 'y'
}

// copyAttributes gives a directory what the same one has below.
func copyAttributes(fd, from int, st unix.Stat_t) error {
	if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	if err := copyXattrs(fd, fdPath(from)); err != nil {
		return err
	}
	return setTime(fd, st.Mtim)
}

func copyXattrs(fd int, from string) error {
	list := make([]byte, 64<<10) // the kernel's own limit
	n, err := unix.Listxattr(from, list)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list xattrs: %w", err)
	}
	for name := range strings.SplitSeq(string(list[:n]), "\x00") {
		if name == "" || foreignXattr(name) {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Getxattr(from, name, value)
		if err != nil {
			return fmt.Errorf("get xattr %.100q: %w", name, err)
		}
		if err := unix.Fsetxattr(fd, name, value[:n], 0); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("set xattr %.100q: %w", name, err)
		}
	}
	return nil
}

// relocate moves what is in the made-up directory name (open as fd) to where
// the symbolic link leads that has its place below.
func (f *fixer) relocate(fd int, name, target string) error {
	const most = 1000
	if f.moves++; f.moves > most {
		return badEntry("more than %d directories are symbolic links below", most)
	}
	if target == name || strings.HasPrefix(target, name+"/") || target == "." {
		return badEntry("symbolic link below leads to %.100q", target)
	}
	to, err := f.dirs.open(target)
	if err != nil {
		return err
	}
	to.dirty = true
	if err := mergeInto(fd, to.fd, 0); err != nil {
		return err
	}
	// The names below have moved, and are to be looked at there.
	for _, q := range f.queue {
		if rest, ok := strings.CutPrefix(q, name+"/"); ok {
			f.queue = append(f.queue, target+"/"+rest)
		}
	}
	parent, err := f.dirs.open(path.Dir(name))
	if err != nil {
		return err
	}
	dup, err := unix.FcntlInt(uintptr(parent.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dup)
	if err := f.dirs.flush(); err != nil {
		return err
	}
	return unix.Unlinkat(dup, path.Base(name), unix.AT_REMOVEDIR)
}

// mergeInto moves all names of one directory into another.
func mergeInto(from, to, depth int) error {
	const deepest = 64
	if depth == deepest {
		return badEntry("directories to be merged are nested too deep")
	}
	for {
		names, err := readNames(from)
		if err != nil || len(names) == 0 {
			return err
		}
		for _, n := range names {
			if err := mergeName(from, to, n, depth); err != nil {
				return fmt.Errorf("move %.100q: %w", n, err)
			}
		}
	}
}

func mergeName(from, to int, name string, depth int) error {
	err := unix.Renameat2(from, name, to, name, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	a, err := unix.Openat(from, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		// No directory: what was reached through the link gives way.
		if err := removeAt(context.Background(), to, name); err != nil {
			return err
		}
		return unix.Renameat(from, name, to, name)
	}
	defer unix.Close(a)
	b, err := unix.Openat(to, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		if err := unix.Unlinkat(to, name, 0); err != nil {
			return err
		}
		return unix.Renameat(from, name, to, name)
	}
	defer unix.Close(b)
	if err := mergeInto(a, b, depth+1); err != nil {
		return err
	}
	return unix.Unlinkat(from, name, unix.AT_REMOVEDIR)
}
