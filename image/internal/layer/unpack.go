package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Unpack reads the layer blob r to its end and writes it below dir, an empty
// directory that nobody else changes. progress, if not nil, is told about the
// bytes of file content as they are written.
//
// Whiteouts become character devices 0:0 and opaque directories get the xattr
// trusted.overlay.opaque, as overlayfs wants it. Devices are made as the
// archive says, like other runtimes do: containers reach them only as far as
// their device cgroup lets them, and the store's own root is closed to others.
// A hard link must lead to a file of the same layer.
func (u *Unpacker) Unpack(ctx context.Context, r io.Reader, dir string, progress func(int64)) (Result, error) {
	z, err := u.NewReader(r)
	if err != nil {
		return Result{}, err
	}
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		z.Close()
		return Result{}, fmt.Errorf("open layer directory %s: %w", dir, err)
	}
	defer unix.Close(root)
	p := newPipeline(z)
	defer z.Close() // after the pipeline's end
	defer p.Close()
	w := &unpacking{ctx: ctx, limits: u.limits, progress: progress,
		buf: make([]byte, 256<<10), implicit: map[string]int{}}
	w.dirs = newDirs(root, w.madeImplicit)
	if err := unix.Fchmod(root, 0o755); err != nil {
		return Result{}, err
	}
	err = w.all(p)
	if flushErr := w.dirs.flush(); err == nil {
		err = flushErr
	}
	if err == nil {
		w.res.DiffID = p.sum()
		w.res.Implicit = slices.DeleteFunc(w.res.Implicit, func(s string) bool { return s == "" })
	}
	return w.res, err
}

// unpacking is the state of one Unpack.
type unpacking struct {
	ctx      context.Context
	limits   Limits
	progress func(int64)
	dirs     *dirs
	res      Result
	entries  int64
	bytes    int64
	buf      []byte
	// implicit maps names of res.Implicit to their places in it.
	implicit      map[string]int
	implicitBytes int
}

func (u *unpacking) all(stream io.Reader) error {
	u.count(0) // the root itself
	t := tar.NewReader(stream)
	for {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		hdr, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return tarError("", err)
		}
		if err := u.entry(hdr, t); err != nil {
			return err
		}
	}
	return u.drain(stream)
}

// maxTail is how much may follow an archive's end. Writers pad to a record of
// 10 KiB, some to a tape's block; a gigabyte of zeros is only meant to keep the
// reader busy.
const maxTail = 64 << 20

// drain reads what follows the archive's end, as the diff ID covers it.
func (u *unpacking) drain(stream io.Reader) error {
	var n int64
	for {
		m, err := stream.Read(u.buf)
		if n += int64(m); n > min(maxTail, streamLimit(u.limits)-u.bytes) {
			return &FormatError{Err: errors.New("too many bytes after the archive's end")}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := u.ctx.Err(); err != nil {
			return err
		}
	}
}

// tarError marks what archive/tar itself says about the stream.
func tarError(entry string, err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrInsecurePath) {
		return &FormatError{Entry: entry, Err: err}
	}
	return err
}

// entry makes one entry. What goes wrong in the kernel about names and kinds
// is the archive's fault, except for lack of space and the like.
func (u *unpacking) entry(hdr *tar.Header, content io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	err := u.checked(hdr, content)
	var format *FormatError
	if err == nil || errors.As(err, &format) || u.ctx.Err() != nil {
		return err
	}
	for _, e := range []error{unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.EISDIR, unix.ENOENT,
		unix.EEXIST, unix.EINVAL, unix.EMLINK, unix.ERANGE, unix.E2BIG, errBadEntry, errTooMany} {
		if errors.Is(err, e) {
			return &FormatError{Entry: hdr.Name, Err: err}
		}
	}
	return fmt.Errorf("unpack %.200q: %w", hdr.Name, err)
}

var errBadEntry = errors.New("bad entry")

func badEntry(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errBadEntry, fmt.Sprintf(format, args...))
}

func (u *unpacking) checked(hdr *tar.Header, content io.Reader) error {
	if u.entries++; u.entries > u.limits.Entries {
		return fmt.Errorf("%w (%d)", errTooMany, u.limits.Entries)
	}
	if err := checkHeader(hdr); err != nil {
		return err
	}
	name := cleanName(hdr.Name)
	if name == "." {
		if hdr.Typeflag != tar.TypeDir {
			return badEntry("the root is not a directory")
		}
		d, err := u.dirs.open(".")
		if err != nil {
			return err
		}
		return u.dirAttributes(d, hdr)
	}
	parent, err := u.dirs.open(path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	if strings.HasPrefix(base, ".wh.") {
		return u.whiteout(parent, name, base)
	}
	parent.dirty = true
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return u.file(parent, name, hdr, content)
	case tar.TypeDir:
		return u.directory(parent, name, hdr)
	case tar.TypeSymlink:
		return u.symlink(parent, name, hdr)
	case tar.TypeLink:
		return u.hardlink(name, hdr)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.node(parent, name, hdr)
	}
	return badEntry("type %q is not known", hdr.Typeflag)
}

func checkHeader(hdr *tar.Header) error {
	if len(hdr.Name) >= maxName || len(hdr.Linkname) >= maxName {
		return badEntry("name of %d bytes", max(len(hdr.Name), len(hdr.Linkname)))
	}
	if strings.ContainsRune(hdr.Name, 0) || strings.ContainsRune(hdr.Linkname, 0) {
		return badEntry("NUL in a name")
	}
	if hasDotDot(hdr.Name) || hdr.Typeflag == tar.TypeLink && hasDotDot(hdr.Linkname) {
		return badEntry(`".." in a name`)
	}
	if hdr.Uid < 0 || hdr.Uid > math.MaxInt32 || hdr.Gid < 0 || hdr.Gid > math.MaxInt32 {
		return badEntry("owner %d:%d is out of range", hdr.Uid, hdr.Gid)
	}
	return nil
}

func hasDotDot(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

// count accounts for one inode with that many bytes of content.
func (u *unpacking) count(bytes int64) {
	const block = 4096
	u.res.Inodes++
	u.res.Bytes += uint64(bytes+block-1) / block * block
}

func (u *unpacking) madeImplicit(name string) error {
	if u.entries++; u.entries > u.limits.Entries {
		return fmt.Errorf("%w (%d)", errTooMany, u.limits.Entries)
	}
	const perName = 100 // of a map's entry and two strings
	if u.implicitBytes += len(name) + perName; u.implicitBytes > implicitMemory {
		return badEntry("too many directories without an entry of their own")
	}
	u.implicit[name] = len(u.res.Implicit)
	u.res.Implicit = append(u.res.Implicit, name)
	u.count(1)
	return nil
}

// whiteout handles the names with which a layer hides those below it.
func (u *unpacking) whiteout(parent *dir, name, base string) error {
	if base == ".wh..wh..opq" {
		if path.Dir(name) == "." {
			u.res.OpaqueRoot = true
		}
		return setOpaque(parent.fd)
	}
	if strings.HasPrefix(base, ".wh..wh.") {
		return nil // aufs' own bookkeeping
	}
	hidden := strings.TrimPrefix(base, ".wh.")
	if hidden == "" || hidden == "." || hidden == ".." {
		return badEntry("whiteout of nothing")
	}
	err := unix.Mknodat(parent.fd, hidden, unix.S_IFCHR, 0)
	if err == nil {
		parent.dirty = true
		u.count(0)
		return nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make whiteout: %w", err)
	}
	// This layer itself has the name: that stays, but what the layers below
	// have in a directory of that name must not show through.
	fd, err := unix.Openat(parent.fd, hidden, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %.200q: %w", hidden, err)
	}
	defer unix.Close(fd)
	return setOpaque(fd)
}

// clear removes what stands at parent/base for something else to take its
// place, and tells whether it was a whiteout.
func (u *unpacking) clear(parent *dir, base string) (wasWhiteout bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(parent.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFLNK:
		// Names that are known may lead through it.
		fd, err := unix.FcntlInt(uintptr(parent.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return false, err
		}
		defer unix.Close(fd)
		if err := u.dirs.flush(); err != nil {
			return false, err
		}
		return false, removeAt(u.ctx, fd, base)
	}
	return isWhiteout(&st), unix.Unlinkat(parent.fd, base, 0)
}

// replace does make, and does it again after removing what is in its way. The
// parent is opened anew, as clear may have let go of it.
func (u *unpacking) replace(parent *dir, name string, make func(fd int, base string) error) (*dir, error) {
	base := path.Base(name)
	err := make(parent.fd, base)
	if !errors.Is(err, unix.EEXIST) {
		return parent, err
	}
	if _, err := u.clear(parent, base); err != nil {
		return parent, fmt.Errorf("replace earlier entry: %w", err)
	}
	if parent, err = u.dirs.open(path.Dir(name)); err != nil {
		return nil, err
	}
	parent.dirty = true
	return parent, make(parent.fd, base)
}

func (u *unpacking) symlink(parent *dir, name string, hdr *tar.Header) error {
	parent, err := u.replace(parent, name, func(fd int, base string) error {
		return unix.Symlinkat(hdr.Linkname, fd, base)
	})
	if err != nil {
		return err
	}
	u.count(0)
	base := path.Base(name)
	if hdr.Uid != 0 || hdr.Gid != 0 {
		if err := unix.Fchownat(parent.fd, base, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("chown: %w", err)
		}
	}
	return u.pathAttributes(parent.fd, base, hdr)
}

func (u *unpacking) node(parent *dir, name string, hdr *tar.Header) error {
	mode := uint32(hdr.Mode) & 0o7777
	dev := 0
	switch hdr.Typeflag {
	case tar.TypeFifo:
		mode |= unix.S_IFIFO
	case tar.TypeChar:
		mode |= unix.S_IFCHR
	case tar.TypeBlock:
		mode |= unix.S_IFBLK
	}
	if hdr.Typeflag != tar.TypeFifo {
		if hdr.Devmajor < 0 || hdr.Devmajor > 0xfff || hdr.Devminor < 0 || hdr.Devminor > 0xfffff {
			return badEntry("device %d:%d is out of range", hdr.Devmajor, hdr.Devminor)
		}
		dev = int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
	}
	parent, err := u.replace(parent, name, func(fd int, base string) error {
		return unix.Mknodat(fd, base, mode, dev)
	})
	if err != nil {
		return err
	}
	u.count(0)
	base := path.Base(name)
	if err := unix.Fchownat(parent.fd, base, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	// It is not a symbolic link: it was made a moment ago, by us alone.
	if err := unix.Fchmodat(parent.fd, base, mode&0o7777, 0); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	return u.pathAttributes(parent.fd, base, hdr)
}

// hardlink gives a second name to a file of this layer. The entry's own
// attributes are those of the file, which has them already: they must not be
// applied again, for the name may be that of a symbolic link (CVE-2021-32760).
func (u *unpacking) hardlink(name string, hdr *tar.Header) error {
	target := cleanName(hdr.Linkname)
	if target == "." || target == name {
		return badEntry("hard link to %.200q", hdr.Linkname)
	}
	var st unix.Stat_t
	from, err := u.dirs.open(path.Dir(target))
	if err == nil {
		err = unix.Fstatat(from.fd, path.Base(target), &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	if errors.Is(err, unix.ENOENT) {
		return badEntry("hard link to %.200q, which this layer does not have", hdr.Linkname)
	}
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR || isWhiteout(&st) {
		return badEntry("hard link to %.200q, which is no file", hdr.Linkname)
	}
	parent, err := u.dirs.open(path.Dir(name))
	if err != nil {
		return err
	}
	_, err = u.replace(parent, name, func(fd int, base string) error {
		from, err := u.dirs.open(path.Dir(target))
		if err != nil {
			return err
		}
		return unix.Linkat(from.fd, path.Base(target), fd, base, 0)
	})
	return err
}
