package layer

import (
	"container/list"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"podstead/sys"
)

// openDirs is how many directories of one layer are held open at a time.
const openDirs = 64

// dirs resolves directories beneath a root and keeps the latest ones open, so
// that an entry costs no path walk. A directory's modification time is that of
// its tar entry, though entries are made in it later: it is set again when the
// directory is let go.
type dirs struct {
	root   int
	byName map[string]*list.Element // of *dirName
	recent list.List                // of *dirName, latest first
	byIno  map[uint64]*dir
	// made is told about each directory that was made because an entry needed
	// it as a parent.
	made func(name string) error
}

// dir is an open directory, which may be known by several names through
// symbolic links.
type dir struct {
	fd    int
	ino   uint64
	mtime unix.Timespec
	dirty bool // entries were made in it since mtime was set
	names int
}

type dirName struct {
	name string
	dir  *dir
}

const resolveBeneath = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

func newDirs(root int, made func(string) error) *dirs {
	return &dirs{root: root, byName: map[string]*list.Element{}, byIno: map[uint64]*dir{}, made: made}
}

// open returns the directory of that clean, relative name ("." is the root),
// following symbolic links inside the root, and makes it and its parents if
// they are missing.
func (c *dirs) open(name string) (*dir, error) { return c.openDepth(name, 0) }

func (c *dirs) openDepth(name string, links int) (*dir, error) {
	if e, ok := c.byName[name]; ok {
		c.recent.MoveToFront(e)
		return e.Value.(*dirName).dir, nil
	}
	fd, err := openat2(c.root, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err == nil {
		return c.keep(name, fd)
	}
	if name == "." || (!errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR)) {
		return nil, fmt.Errorf("open directory %.200q: %w", name, err)
	}
	parent, err := c.openDepth(path.Dir(name), links)
	if err != nil {
		return nil, err
	}
	return c.makeImplicit(parent, name, links)
}

// makeImplicit makes a directory that the archive has not mentioned yet.
func (c *dirs) makeImplicit(parent *dir, name string, links int) (*dir, error) {
	base := path.Base(name)
	var st unix.Stat_t
	err := unix.Fstatat(parent.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	hidden := false
	switch {
	case errors.Is(err, unix.ENOENT):
	case err != nil:
		return nil, fmt.Errorf("stat parent %.200q: %w", name, err)
	case isWhiteout(&st):
		// Removed from the layers below and made anew by this one.
		if err := unix.Unlinkat(parent.fd, base, 0); err != nil {
			return nil, fmt.Errorf("replace whiteout %.200q: %w", name, err)
		}
		hidden = true
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		// It leads to a directory that only a layer below has.
		if links == maxLinks {
			return nil, fmt.Errorf("parent %.200q: %w", name, unix.ELOOP)
		}
		target, err := readlinkat(parent.fd, base)
		if err != nil {
			return nil, fmt.Errorf("read link %.200q: %w", name, err)
		}
		return c.openDepth(linkTarget(name, target), links+1)
	default:
		return nil, fmt.Errorf("parent %.200q: %w", name, unix.ENOTDIR)
	}
	if err := c.made(name); err != nil {
		return nil, err
	}
	if err := unix.Mkdirat(parent.fd, base, 0o755); err != nil {
		return nil, fmt.Errorf("make parent %.200q: %w", name, err)
	}
	parent.dirty = true
	fd, err := unix.Openat(parent.fd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open parent %.200q: %w", name, err)
	}
	d, err := c.keep(name, fd)
	if err != nil {
		return nil, err
	}
	if err := unix.Fchmod(d.fd, 0o755); err != nil { // whatever the umask
		return nil, fmt.Errorf("parent %.200q: %w", name, err)
	}
	if hidden {
		return d, setOpaque(d.fd)
	}
	return d, nil
}

const maxLinks = 40

// linkTarget is the clean name, beneath the root, that a symbolic link leads
// to. It is taken by its letters: only what does not exist is asked for.
func linkTarget(link, target string) string {
	if !strings.HasPrefix(target, "/") {
		target = path.Dir(link) + "/" + target
	}
	return cleanName(target)
}

// cleanName turns any path into one relative to the root, without "..".
func cleanName(name string) string {
	name = path.Clean("/" + name)
	if name == "/" {
		return "."
	}
	return name[1:]
}

// keep takes over fd as the directory of that name.
func (c *dirs) keep(name string, fd int) (*dir, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("stat directory %.200q: %w", name, err)
	}
	d := c.byIno[st.Ino]
	if d != nil {
		unix.Close(fd)
	} else {
		d = &dir{fd: fd, ino: st.Ino, mtime: st.Mtim}
		c.byIno[st.Ino] = d
	}
	if e, ok := c.byName[name]; ok {
		c.recent.MoveToFront(e)
		return d, nil
	}
	d.names++
	c.byName[name] = c.recent.PushFront(&dirName{name, d})
	for c.recent.Len() > openDirs {
		if err := c.drop(c.recent.Back()); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (c *dirs) drop(e *list.Element) error {
	n := c.recent.Remove(e).(*dirName)
	delete(c.byName, n.name)
	d := n.dir
	if d.names--; d.names > 0 {
		return nil
	}
	delete(c.byIno, d.ino)
	var err error
	if d.dirty {
		err = setTime(d.fd, d.mtime)
	}
	unix.Close(d.fd)
	if err != nil {
		return fmt.Errorf("directory %.200q: %w", n.name, err)
	}
	return nil
}

// flush lets go of all directories. It is called at the end, and when a name
// that may be part of a known path begins to mean something else.
func (c *dirs) flush() error {
	var errs error
	for c.recent.Len() > 0 {
		errs = errors.Join(errs, c.drop(c.recent.Front()))
	}
	return errs
}

func openat2(root int, name string, flags uint64) (int, error) {
	return sys.Openat2(root, name, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolveBeneath})
}

func readlinkat(fd int, base string) (string, error) {
	var buf [maxName]byte
	n, err := unix.Readlinkat(fd, base, buf[:])
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

const opaqueXattr = "trusted.overlay.opaque"

// fdPath names a descriptor for calls that have no form for O_PATH ones.
func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func setOpaque(fd int) error {
	if err := unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0); err != nil {
		return fmt.Errorf("set %s: %w", opaqueXattr, err)
	}
	return nil
}

func setTime(fd int, t unix.Timespec) error {
	err := unix.UtimesNanoAt(fd, "", []unix.Timespec{t, t}, unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}
