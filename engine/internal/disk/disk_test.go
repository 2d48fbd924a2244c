package disk

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podstead/sys/quota"
)

func write(t *testing.T, path string, size int) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Repeat("x", size)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// blocks is what a file takes on this file system.
func blocks(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return uint64(st.Blocks) * 512
}

func count(t *testing.T, dir string) Usage {
	t.Helper()
	u, err := walk(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestWalkCountsEachInodeOnce(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, "a", "b")
	if err := os.MkdirAll(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(sub, "file")
	write(t, file, 100_000)
	for i := range 3 {
		if err := os.Link(file, filepath.Join(dir, "link"+strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	sparse := filepath.Join(dir, "sparse")
	if err := os.WriteFile(sparse, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(sparse, 1<<40); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/", filepath.Join(dir, "root")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := uint64(0)
	all := []string{dir, filepath.Join(dir, "a"), sub, file, sparse, filepath.Join(dir, "root"), filepath.Join(dir, "fifo")}
	for _, path := range all {
		want += blocks(t, path)
	}
	if u := count(t, dir); u.Bytes != want || u.Inodes != uint64(len(all)) || u.Partial {
		t.Errorf("usage is %+v, want %d bytes, %d inodes", u, want, len(all))
	}
}

// TestWalkOfADeepTree goes deeper than a path can name.
func TestWalkOfADeepTree(t *testing.T) {
	const depth = 3000
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range depth {
		if err := unix.Mkdirat(fd, "dir", 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "dir", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
		fd = next
	}
	unix.Close(fd)
	if u := count(t, dir); u.Inodes != depth+1 || u.Partial {
		t.Errorf("usage is %+v, want %d inodes", u, depth+1)
	}
}

func TestWalkEnds(t *testing.T) {
	if _, err := walk(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing directory: %v", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/", link); err != nil {
		t.Fatal(err)
	}
	if _, err := walk(t.Context(), link); err == nil {
		t.Error("a link was followed")
	}
}

func newSurveyor(t *testing.T, projects Projects) *Surveyor {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	return NewSurveyor(ctx, wg.Go, slog.New(slog.DiscardHandler), projects)
}

func TestLayerIsCountedWhenItMayHaveChanged(t *testing.T) {
	s, dir := newSurveyor(t, nil), t.TempDir()
	var l Layer
	if _, ok := l.Usage(); ok {
		t.Error("figures before the first count")
	}
	<-s.Survey(&l, Tree{Dir: dir}, 1)
	first, ok := l.Usage()
	if !ok || first.Inodes != 1 {
		t.Fatalf("first figures: %+v, %v", first, ok)
	}
	write(t, filepath.Join(dir, "new"), 1)
	if s.Survey(&l, Tree{Dir: dir}, 1) != nil {
		t.Error("counted again although the container has not run")
	}
	if u, _ := l.Usage(); !u.At.After(first.At) {
		t.Error("figures that still hold are shown as old")
	}
	if s.Survey(&l, Tree{Dir: dir}, 2) != nil {
		t.Error("counted again at once")
	}
	l.walked = l.walked.Add(-minAge)
	<-s.Survey(&l, Tree{Dir: dir}, 2)
	if u, _ := l.Usage(); u.Inodes != 2 {
		t.Errorf("figures after a change: %+v", u)
	}
}

func TestLayerThatIsGoneKeepsItsFigures(t *testing.T) {
	s, dir := newSurveyor(t, nil), filepath.Join(t.TempDir(), "upper")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var l Layer
	<-s.Survey(&l, Tree{Dir: dir}, 1)
	before, _ := l.Usage()
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	l.walked = l.walked.Add(-minAge)
	<-s.Survey(&l, Tree{Dir: dir}, 2)
	if after, ok := l.Usage(); !ok || after.Inodes != before.Inodes {
		t.Errorf("figures are %+v, were %+v", after, before)
	}
}

func TestMountSource(t *testing.T) {
	const table = "25 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n31 25 0:27 /a /mnt rw shared:1 - btrfs /dev/vdb rw\ntorn\n"
	for number, want := range map[string]string{"254:0": "/dev/vda", "0:27": "/dev/vdb", "1:1": ""} {
		if got := mountSource(table, number); got != want {
			t.Errorf("%s: %q, want %q", number, got, want)
		}
	}
	f, err := FilesystemOf(t.TempDir())
	if err != nil || f.Device == "" || f.Bytes == 0 {
		t.Errorf("file system is %+v, %v", f, err)
	}
}

// meter is a kernel that counts projects as the test says.
type meter struct {
	usage quota.Usage
	err   error
}

func (m *meter) Usage(uint32) (quota.Usage, error) { return m.usage, m.err }

func TestKernelIsAsked(t *testing.T) {
	m := &meter{usage: quota.Usage{Bytes: 1 << 20, Inodes: 7}}
	s := newSurveyor(t, m)
	tree := Tree{Dir: filepath.Join(t.TempDir(), "none"), Project: 5, Sealed: true}
	var l Layer
	for _, n := range []uint64{10, 20, 5} {
		m.usage.Inodes = n
		if s.Survey(&l, tree, n) != nil {
			t.Error("the kernel's figures have to be waited for")
		}
		if u, ok := l.Usage(); !ok || u.Bytes != 1<<20 || u.Inodes != n || u.At.IsZero() {
			t.Errorf("figures are %+v, %v, want %d inodes", u, ok, n)
		}
	}
	// Quotas have been switched off.
	tree.Dir, m.err = t.TempDir(), unix.ESRCH
	<-s.Survey(&l, tree, 6)
	if u, _ := l.Usage(); u.Inodes != 1 {
		t.Errorf("of an empty directory: %+v", u)
	}
}

// TestWhatIsHiddenIsAdded: what a walk finds beyond the kernel's figures counts,
// until a later one does not find it.
func TestWhatIsHiddenIsAdded(t *testing.T) {
	m := &meter{usage: quota.Usage{Bytes: 1 << 20, Inodes: 3}}
	s, tree := newSurveyor(t, m), Tree{Dir: t.TempDir(), Project: 5}
	var l Layer
	tells := func(what string, inodes uint64, waits bool) {
		t.Helper()
		done := s.Survey(&l, tree, m.usage.Inodes*10)
		if (done != nil) != waits {
			t.Errorf("%s: has to be waited for: %v", what, done != nil)
		}
		if waits {
			<-done
		}
		l.mu.Lock()
		counting := l.counting
		l.mu.Unlock()
		if counting != nil { // unasked
			<-counting
		}
		if u, _ := l.Usage(); u.Inodes != inodes || u.Bytes < m.usage.Bytes {
			t.Errorf("%s: figures are %+v, want %d inodes", what, u, inodes)
		}
	}
	later := func(by time.Duration) { l.walked = l.walked.Add(-by) }
	tells("nothing is hidden", 3, true)
	for i := range 9 {
		write(t, filepath.Join(tree.Dir, strconv.Itoa(i)), 1)
	}
	m.usage.Inodes = 4
	later(minAge)
	tells("the kernel is believed for a while", 4, false)
	later(auditAge)
	tells("the walk has found more", 10, false)
	m.usage.Inodes = 5
	tells("which counts from then on", 11, false)
	later(minAge)
	tells("and is looked at again soon", 10, true)
	m.usage.Inodes = 12
	later(minAge)
	tells("until nothing is hidden", 12, true)
	m.usage.Inodes = 13
	later(minAge)
	tells("when the kernel is believed again", 13, false)
}
