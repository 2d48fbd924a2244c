package crilog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// openLog opens a log for appending, with its size. O_NONBLOCK keeps a FIFO in
// its place from blocking the supervisor.
func openLog(path string, flags int) (fd int, size int64, err error) {
	const base = unix.O_WRONLY | unix.O_APPEND | unix.O_CREAT | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY
	for {
		fd, err = unix.Open(path, base|flags, 0o640)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return -1, 0, &os.PathError{Op: "open log", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, 0, &os.PathError{Op: "stat log", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return -1, 0, &os.PathError{Op: "open log", Path: path, Err: errors.New("not a regular file")}
	}
	return fd, st.Size, nil
}

// rotate renames the log to PATH.YYYYMMDD-HHMMSS-NNNN, starts a new one and
// removes the oldest. If somebody else renamed the log already, it only starts
// the new one.
func (w *Writer) rotate() error {
	var st unix.Stat_t
	if err := unix.Fstat(w.fd, &st); err != nil {
		return fmt.Errorf("stat log %s: %w", w.Path, err)
	}
	if st.Size < w.size { // truncated by somebody: there is room again
		w.size = st.Size
		return nil
	}
	var at unix.Stat_t
	err := unix.Lstat(w.Path, &at)
	switch {
	case err == unix.ENOENT:
		return w.Reopen()
	case err != nil:
		return fmt.Errorf("stat log %s: %w", w.Path, err)
	case at.Ino != st.Ino || at.Dev != st.Dev:
		return w.Reopen()
	}
	old := rotatedName(w.Path, time.Now())
	err = unix.Rename(w.Path, old)
	if err == unix.ENOENT { // somebody has renamed it this very moment
		return w.Reopen()
	}
	if err != nil {
		return fmt.Errorf("rotate log %s: %w", w.Path, err)
	}
	fd, size, err := openLog(w.Path, unix.O_EXCL)
	if err != nil {
		return errors.Join(err, unix.Rename(old, w.Path))
	}
	unix.Close(w.fd)
	w.fd, w.size = fd, size
	w.prune()
	return nil
}

// rotatedName finds a free name; names sort in the order of the rotations. It is
// never one of the kubelet's, which have no number: those replace what is there.
func rotatedName(path string, now time.Time) (name string) {
	base := path + "." + now.Format("20060102-150405")
	for i := 1; i < 10000; i++ {
		name = fmt.Sprintf("%s-%04d", base, i)
		var st unix.Stat_t
		if unix.Lstat(name, &st) == unix.ENOENT {
			break
		}
	}
	return name
}

// prune removes rotated logs beyond MaxFiles, the oldest first. What cannot be
// removed is tried again at the next rotation.
func (w *Writer) prune() {
	dir, prefix := filepath.Dir(w.Path), filepath.Base(w.Path)+"."
	d, err := os.Open(dir)
	if err != nil {
		return
	}
	names, _ := d.Readdirnames(-1)
	d.Close()
	names = slices.DeleteFunc(names, func(n string) bool {
		return !strings.HasPrefix(n, prefix) || len(n) == len(prefix) || n[len(prefix)] < '0' || n[len(prefix)] > '9'
	})
	slices.Sort(names)
	for keep := max(w.MaxFiles-1, 1); len(names) > keep; names = names[1:] {
		os.Remove(filepath.Join(dir, names[0]))
	}
}
