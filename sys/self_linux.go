package sys

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// ReadOnlySelf makes the running program one that nobody can write to by way of
// /proc/PID/exe: unless it is on a read-only mount already, it executes itself
// anew, as args, from a read-only mount that is nowhere in the file system. A
// process that forks children into containers must do so before: a container
// may have such a child execute /proc/self/exe, which is the program on the
// host, and overwrite it as soon as it runs no more (CVE-2019-5736).
//
// The process stays the same, with its descriptors that are not closed on
// exec; afterwards os.Executable knows the file's name only.
func ReadOnlySelf(args []string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(self, &st); err != nil {
		return fmt.Errorf("%s: %w", self, err)
	}
	if st.Flags&unix.MS_RDONLY != 0 || unix.Geteuid() != 0 && sealedOrForeign() {
		return nil
	}
	path, err := os.Executable()
	if err != nil {
		return err
	}
	// The mount is of the directory, so that the process keeps its name, unless
	// the file is mounted there by itself.
	tree, err := readOnlyTree(filepath.Dir(path))
	if errors.Is(err, unix.EPERM) {
		return sealedSelf(path, args)
	}
	if err != nil {
		return err
	}
	exe := tree + "/" + filepath.Base(path)
	if !sameFile(exe, self) {
		if exe, err = readOnlyTree(path); err != nil {
			return err
		}
	}
	return &os.PathError{Op: "exec", Path: path, Err: syscall.Exec(exe, args, os.Environ())}
}

const self = "/proc/self/exe"

// readOnlyTree returns the path, by way of a descriptor that is closed on exec,
// of a detached read-only copy of the mount at path.
func readOnlyTree(path string) (string, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return "", &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return "", &os.PathError{Op: "mount_setattr", Path: path, Err: err}
	}
	return "/proc/self/fd/" + strconv.Itoa(fd), nil
}

// sealedOrForeign tells whether a user who is not root cannot write to the program
// as it is: because it is sealed, or because it is somebody else's.
func sealedOrForeign() bool {
	f, err := os.Open(self)
	if err != nil {
		return false
	}
	defer f.Close()
	if seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); err == nil && seals&unix.F_SEAL_WRITE != 0 {
		return true
	}
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && int(st.Uid) != unix.Geteuid() && unix.Access(self, unix.W_OK) != nil
}

// sealedSelf executes a copy of the program in memory that nobody can change: what
// is left to those who may not mount.
func sealedSelf(path string, args []string) error {
	from, err := os.Open(self)
	if err != nil {
		return err
	}
	defer from.Close()
	fd, err := unix.MemfdCreate(filepath.Base(path), unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // MFD_EXEC is of Linux 6.3
		fd, err = unix.MemfdCreate(filepath.Base(path), unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if _, err := io.Copy(f, from); err != nil {
		return err
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	return &os.PathError{Op: "exec", Path: path, Err: syscall.Exec("/proc/self/fd/"+strconv.Itoa(fd), args, os.Environ())}
}

func sameFile(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}
