package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Save writes a checkpoint to an archive. The file appears as a whole or not at
// all, even if the machine dies meanwhile, and is for root alone.
func (d Dir) Save(ctx context.Context, location string) (err error) {
	if !filepath.IsAbs(location) {
		return fmt.Errorf("%s: is not absolute", location)
	}
	f, commit, err := createLater(location)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	w := tar.NewWriter(f)
	for _, name := range []string{ConfigFile, SpecFile, LogFile, StatsFile, DeletedFile, DiffFile} {
		if err := d.add(ctx, w, name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: ImagesDir + "/", Mode: 0o700}); err != nil {
		return err
	}
	images, err := os.ReadDir(d.Images())
	if err != nil {
		return err
	}
	for _, i := range images {
		if err := d.add(ctx, w, path.Join(ImagesDir, i.Name())); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return commit()
}

func (d Dir) add(ctx context.Context, w *tar.Writer, name string) error {
	f, err := openRegular(d.path(name))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	err = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: info.Size(), Mode: 0o600, ModTime: info.ModTime(), Format: tar.FormatPAX})
	if err != nil {
		return err
	}
	_, err = io.Copy(w, contextReader{ctx, f})
	return err
}

// contextReader ends a copy when its caller has gone.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// createLater makes a file without a name; commit gives it one, in place of what
// had it. Nothing is left of one that is only closed.
func createLater(location string) (f *os.File, commit func() error, err error) {
	dir := filepath.Dir(location)
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("make a file in %s: %w", dir, err)
	}
	f = os.NewFile(uintptr(fd), location)
	return f, func() error {
		self := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
		err := unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, location, unix.AT_SYMLINK_FOLLOW)
		if !errors.Is(err, unix.EEXIST) {
			return errors.Join(err, syncDir(dir))
		}
		aside := filepath.Join(dir, "."+filepath.Base(location)+".new")
		_ = os.Remove(aside) // of an attempt that died here
		if err := unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, aside, unix.AT_SYMLINK_FOLLOW); err != nil {
			return err
		}
		if err := os.Rename(aside, location); err != nil {
			return errors.Join(err, os.Remove(aside))
		}
		return syncDir(dir)
	}, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Extract unpacks an archive of size bytes, which may be compressed, into an
// empty directory: the files that are known, with names that CRIU uses, and
// nothing else.
func Extract(ctx context.Context, r io.Reader, size int64, to Dir) error {
	if err := os.Mkdir(to.Images(), 0o700); err != nil {
		return err
	}
	r, limit, closed, err := plain(contextReader{ctx, r}, size)
	if err != nil {
		return err
	}
	defer closed()
	x := extraction{to: to, left: limit}
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return x.complete()
		}
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
		if err := x.entry(h, t); err != nil {
			return err
		}
	}
}

// Copy takes a checkpoint over from a directory, such as the layer of an image
// that was made of one, under the same rules.
func Copy(ctx context.Context, from, to Dir) error {
	if err := os.Mkdir(to.Images(), 0o700); err != nil {
		return err
	}
	x := extraction{to: to, left: 1 << 62} // it is on the disk already
	for _, name := range []string{ConfigFile, SpecFile, DiffFile, DeletedFile} {
		if err := x.copy(ctx, from, name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	fd, err := unix.Open(from.Images(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", ImagesDir, ErrFormat, err)
	}
	dir := os.NewFile(uintptr(fd), ImagesDir)
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1000)
		for _, n := range names {
			if err := x.copy(ctx, from, path.Join(ImagesDir, n)); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return x.complete()
		}
		if err != nil {
			return err
		}
	}
}

// extraction is what has been taken out of an archive so far.
type extraction struct {
	to    Dir
	left  int64 // bytes that there can still be: no entry is larger than its archive
	files int
}

func (x *extraction) copy(ctx context.Context, from Dir, name string) error {
	f, err := openRegular(from.path(name))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return x.entry(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: info.Size()}, contextReader{ctx, f})
}

func (x *extraction) entry(h *tar.Header, r io.Reader) error {
	name := path.Clean(strings.TrimPrefix(h.Name, "./"))
	inImages := strings.HasPrefix(name, ImagesDir+"/")
	switch {
	case name == ImagesDir && h.Typeflag == tar.TypeDir:
		return nil
	case inImages && h.Typeflag != tar.TypeReg:
		return fmt.Errorf("%.200q is no regular file: %w", h.Name, ErrFormat)
	case inImages && !imageName.MatchString(strings.TrimPrefix(name, ImagesDir+"/")):
		return fmt.Errorf("%.200q is no name of an image file: %w", h.Name, ErrFormat)
	case inImages:
	case h.Typeflag != tar.TypeReg:
		return nil
	case name != ConfigFile && name != SpecFile && name != DiffFile && name != DeletedFile:
		return nil // logs and statistics of others
	}
	if x.files++; x.files > maxFiles {
		return fmt.Errorf("more than %d files: %w", maxFiles, ErrFormat)
	}
	if h.Size < 0 || h.Size > x.left {
		return fmt.Errorf("%.200q is larger than its archive: %w", h.Name, ErrFormat)
	}
	x.left -= h.Size
	f, err := os.OpenFile(x.to.path(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%.200q is there twice: %w", h.Name, ErrFormat)
	}
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, r, h.Size)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%.200q ends early: %w", h.Name, ErrFormat)
	}
	return errors.Join(err, f.Close())
}

// complete tells whether there is what a restore needs.
func (x *extraction) complete() error {
	for _, name := range []string{ConfigFile, SpecFile, path.Join(ImagesDir, "inventory.img"), path.Join(ImagesDir, "pstree.img")} {
		if _, err := os.Lstat(x.to.path(name)); err != nil {
			return fmt.Errorf("%s is missing: %w", name, ErrFormat)
		}
	}
	return nil
}
