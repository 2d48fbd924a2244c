package pressure

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"podstead/agent/internal/eviction"
)

// maxDepth is how deep Measure looks; a descriptor is open for each level.
const maxDepth = 100

// errDeep: what is below may be anything.
var errDeep = errors.New("directories are nested too deep to be measured")

// Measure tells what a directory and all below it take of their file system:
// blocks, as du counts them, a file with several names once. It follows no link
// and enters no mount. What is below may change meanwhile, and the names are the
// containers' to choose. With an error, it is less than there is.
func Measure(ctx context.Context, dir string) (eviction.Disk, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) {
		return eviction.Disk{}, nil
	}
	if err != nil {
		return eviction.Disk{}, &os.PathError{Op: "measure", Path: dir, Err: err}
	}
	m := measure{ctx: ctx, links: map[uint64]bool{}}
	top := os.NewFile(uintptr(fd), dir)
	defer top.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return eviction.Disk{}, &os.PathError{Op: "measure", Path: dir, Err: err}
	}
	m.device = st.Dev
	m.add(&st)
	if err := m.walk(top, 0); err != nil {
		return m.sum, &os.PathError{Op: "measure", Path: dir, Err: err}
	}
	return m.sum, nil
}

type measure struct {
	ctx    context.Context
	device uint64
	links  map[uint64]bool // inodes with several names that were counted
	sum    eviction.Disk
}

func (m *measure) add(st *unix.Stat_t) {
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		if m.links[st.Ino] {
			return
		}
		m.links[st.Ino] = true
	}
	m.sum.Bytes += st.Blocks * 512
	m.sum.Inodes++
}

func (m *measure) walk(dir *os.File, depth int) (err error) {
	for {
		if err := m.ctx.Err(); err != nil {
			return err
		}
		names, readErr := dir.Readdirnames(512)
		for _, name := range names {
			err = errors.Join(err, m.entry(dir, name, depth))
			if m.ctx.Err() != nil {
				return m.ctx.Err()
			}
		}
		switch {
		case errors.Is(readErr, io.EOF):
			return err
		case readErr != nil:
			return errors.Join(err, readErr)
		}
	}
}

func (m *measure) entry(dir *os.File, name string, depth int) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Dev != m.device {
		return nil
	}
	m.add(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	if depth == maxDepth {
		return errDeep
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // it is another one by now
	}
	if err != nil {
		return err
	}
	sub := os.NewFile(uintptr(fd), name)
	defer sub.Close()
	return m.walk(sub, depth+1)
}
