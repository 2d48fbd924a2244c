// Package tree turns directories of the host and layers of images into what is
// mounted into containers. It is called by the engine and by engine/docker, keeps
// nothing, and what it opens is mounted at no place until the caller moves it
// there. Images are hostile: links in them lead nowhere else.
package tree

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"podstead/cri"
	"podstead/sys"
)

// OpenImage mounts layers (top first) read-only at no place in the file
// system: the mount ends with the file. Options, KEY=VALUE, are overlay's, which
// takes two layers at least.
func OpenImage(lower []string, options ...string) (*os.File, error) {
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
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return nil, fmt.Errorf("fsconfig %s: %w", o, err)
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

// Read reads a regular file of an image, at most limit bytes, nil if it
// is not there. Links lead nowhere but inside the image, and what is no regular
// file (a FIFO would block the reader) is refused.
func Read(tree *os.File, path string, limit int64) ([]byte, error) {
	fd, err := sys.Openat2(int(tree.Fd()), path, &unix.OpenHow{
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

// HostPath resolves a path of the host, and makes it a directory if it is
// missing.
func HostPath(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", cri.Errorf(codes.InvalidArgument, "host_path %q is not absolute", path)
	}
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return "", fmt.Errorf("make host_path %s: %w", path, err)
		}
		real, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", fmt.Errorf("host_path %s: %w", path, err)
	}
	return real, nil
}

// Within resolves a path inside an image that nobody can change any more,
// with the image's own links kept inside it.
func Within(root, sub string) (string, error) {
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	if sub == "" {
		return root, nil
	}
	if !filepath.IsLocal(sub) {
		return "", cri.Errorf(codes.InvalidArgument, "leads out of the image")
	}
	fd, err := sys.Openat2(int(dir.Fd()), sub, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return "", os.NewSyscallError("openat2", err)
	}
	f := os.NewFile(uintptr(fd), sub)
	defer f.Close()
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
}

// HasMountSetattr asks with arguments that a kernel which has the call (5.12)
// refuses.
func HasMountSetattr() bool {
	err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	return !errors.Is(err, unix.ENOSYS)
}
