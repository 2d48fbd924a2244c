package engine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"podstead/engine/internal/spec"
)

// openImageTree mounts layers (top first) read-only at no place in the file
// system: the mount ends with the file.
func openImageTree(lower []string) (*os.File, error) {
	switch len(lower) {
	case 0:
		return nil, errors.New("the image has no layers")
	case 1:
		return cloneTree(lower[0])
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen overlay", err)
	}
	defer unix.Close(fs)
	for _, dir := range lower {
		if err := unix.FsconfigSetString(fs, "lowerdir+", dir); err != nil {
			return nil, fmt.Errorf("fsconfig lowerdir %s: %w", dir, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, os.NewSyscallError("fsconfig overlay", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return nil, os.NewSyscallError("fsmount overlay", err)
	}
	return os.NewFile(uintptr(fd), "image tree"), nil
}

func cloneTree(dir string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open_tree %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), dir)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		f.Close()
		return nil, fmt.Errorf("mount_setattr %s: %w", dir, err)
	}
	return f, nil
}

// readInTree reads a regular file of an image, at most limit bytes, nil if it
// is not there. Links lead nowhere but inside the image, and what is no regular
// file (a FIFO would block the reader) is refused.
func readInTree(tree *os.File, path string, limit int64) ([]byte, error) {
	fd, err := unix.Openat2(int(tree.Fd()), path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the image's %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("the image's %s is not a regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read the image's %s: %w", path, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("the image's %s is larger than %d bytes", path, limit)
	}
	return b, nil
}

// The bounds of the cache: images in use are few, and their files small. Large
// ones are read each time: a megabyte of commas is a million members of a group.
const (
	maxCachedAccounts     = 128
	maxCachedAccountBytes = 64 << 10
)

// accountCache keeps the users and groups of images, which never change. The
// zero value is ready.
type accountCache struct {
	mu      sync.Mutex
	byImage map[string]spec.Accounts
}

func (a *accountCache) get(imageID string, lower []string) (spec.Accounts, error) {
	a.mu.Lock()
	got, ok := a.byImage[imageID]
	a.mu.Unlock()
	if ok {
		return got, nil
	}
	got, size, err := readAccounts(lower)
	if err != nil || size > maxCachedAccountBytes {
		return got, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.byImage == nil || len(a.byImage) >= maxCachedAccounts {
		a.byImage = map[string]spec.Accounts{}
	}
	a.byImage[imageID] = got
	return got, nil
}

// readAccounts reads an image's account files and tells how large they are.
func readAccounts(lower []string) (a spec.Accounts, size int, err error) {
	tree, err := openImageTree(lower)
	if err != nil {
		return a, 0, err
	}
	defer tree.Close()
	passwd, err := readInTree(tree, "etc/passwd", spec.MaxAccountFile)
	if err != nil {
		return a, 0, err
	}
	group, err := readInTree(tree, "etc/group", spec.MaxAccountFile)
	if err != nil {
		return a, 0, err
	}
	return spec.ParseAccounts(passwd, group), len(passwd) + len(group), nil
}
