package sys

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRemoveDeepTree: a container can nest directories deeper than a process
// may have files open.
func TestRemoveDeepTree(t *testing.T) {
	const depth, files = 600, 200
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(t.TempDir(), "tree")
	must(os.Mkdir(dir, 0o755))
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(err)
	for range depth {
		must(unix.Mkdirat(fd, "d", 0o755))
		must(unix.Mkdirat(fd, ".moved-1", 0o755))
		must(unix.Symlinkat("/etc", fd, "link"))
		next, err := unix.Openat(fd, "d", unix.O_PATH|unix.O_DIRECTORY, 0)
		must(err)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	var old unix.Rlimit
	must(unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	must(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: files, Max: old.Max}))
	err = RemoveTree(dir)
	must(unix.Setrlimit(unix.RLIMIT_NOFILE, &old))
	must(err)
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Error(err)
	}
	must(RemoveTree(dir))
}

// TestRemoveTreeStopsAtMounts leaves what is mounted inside alone.
func TestRemoveTreeStopsAtMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	base := t.TempDir()
	at := filepath.Join(base, "tree", "a", "b", "mnt")
	data := filepath.Join(base, "precious")
	if err := errors.Join(os.MkdirAll(at, 0o755), os.Mkdir(data, 0o755), os.WriteFile(data+"/file", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	err := OnDisposableThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount(data, at, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return RemoveTree(filepath.Join(base, "tree"))
	})
	if !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EBUSY) {
		t.Errorf("remove a tree with a mount in it: %v", err)
	}
	if _, err := os.Stat(data + "/file"); err != nil {
		t.Error(err)
	}
}
