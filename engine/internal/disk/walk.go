package disk

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
)

// How deep a walk goes with one descriptor per level, and how many directories
// it puts by that lie deeper and become roots of their own.
const (
	maxDepth = 128
	maxRoots = 256
)

// The pace of a long walk: bursts of work with pauses that are four times as
// long, so that it takes a fifth of one processor at most. A short walk, which
// is nearly every one, is over before the first pause.
const (
	sprint = 20 * time.Millisecond
	burst  = 5 * time.Millisecond
	pause  = 4 * burst
)

// walker counts a tree that others change meanwhile and may have built to do
// harm. It goes by descriptors and follows no link, so that it never leaves the
// tree; what vanishes under it is not counted.
type walker struct {
	ctx     context.Context
	device  uint64
	bytes   float64
	inodes  float64
	roots   []int // directories that wait to be walked, open
	partial bool  // not all could be looked at
	names   int   // since the clock was looked at
	rest    time.Time
}

// walk counts what dir and all below it take. The error is that of dir itself or
// the context's.
func walk(ctx context.Context, dir string) (Usage, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Usage{}, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	w := &walker{ctx: ctx, roots: []int{fd}, rest: time.Now().Add(sprint)}
	defer func() {
		for _, fd := range w.roots {
			unix.Close(fd)
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Usage{}, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	w.device = st.Dev
	w.count(&st)
	for len(w.roots) > 0 {
		fd := w.roots[len(w.roots)-1]
		w.roots = w.roots[:len(w.roots)-1]
		err := w.directory(fd, 0)
		unix.Close(fd)
		if err != nil {
			return Usage{}, err
		}
	}
	return Usage{Bytes: uint64(w.bytes + 0.5), Inodes: uint64(w.inodes + 0.5), Partial: w.partial}, nil
}

// count adds an inode. One with several names is met once by each, so each adds
// its share; that needs no memory of those already seen.
func (w *walker) count(st *unix.Stat_t) {
	share := 1.0
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		share /= float64(st.Nlink)
	}
	w.bytes += share * float64(st.Blocks) * 512
	w.inodes += share
}

// directory counts what is in an open directory. Its error is the context's.
func (w *walker) directory(fd, depth int) error {
	buf := make([]byte, 8<<10)
	var names []string
	for {
		n, err := unix.ReadDirent(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			w.partial = w.partial || !errors.Is(err, unix.ENOENT)
			return nil
		}
		if n <= 0 {
			return nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names[:0])
		for _, name := range names {
			if err := w.entry(fd, name, depth); err != nil {
				return err
			}
		}
	}
}

func (w *walker) entry(dir int, name string, depth int) error {
	if err := w.breathe(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		w.partial = w.partial || !errors.Is(err, unix.ENOENT)
		return nil
	}
	if st.Dev != w.device {
		return nil // mounted over, not of the tree
	}
	w.count(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	if depth == maxDepth && len(w.roots) == maxRoots {
		w.partial = true
		return nil
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		w.partial = w.partial || !errors.Is(err, unix.ENOENT)
		return nil
	}
	if depth == maxDepth {
		w.roots = append(w.roots, fd)
		return nil
	}
	defer unix.Close(fd)
	return w.directory(fd, depth+1)
}

// breathe pauses when it is time to.
func (w *walker) breathe() error {
	if w.names++; w.names < 64 {
		return nil
	}
	w.names = 0
	if time.Now().Before(w.rest) {
		return nil
	}
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-w.ctx.Done():
		return w.ctx.Err()
	case <-t.C:
	}
	w.rest = time.Now().Add(burst)
	return nil
}
