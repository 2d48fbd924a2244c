package launch

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"podstead/sys"
)

// NewSeed makes a mount namespace with an empty root and nothing else, and
// returns a descriptor of it. The mount namespace of a container starts as a
// copy, at 2 µs a mount; on a node with hundreds of volumes a copy of this
// one, see Options.MountNamespace, is what makes the difference. It lives as
// long as the descriptor or a copy of it.
func NewSeed() (f *os.File, err error) {
	err = sys.OnDisposableThread(func() error {
		if f, err = newSeed(); err != nil {
			return fmt.Errorf("make a mount namespace to start from: %w", err)
		}
		return nil
	})
	return f, err
}

func newSeed() (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, os.NewSyscallError("unshare", err)
	}
	f, err := os.Open("/proc/thread-self/ns/mnt")
	if err != nil {
		return nil, err
	}
	if err := emptyRoot(); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// emptyRoot leaves the thread's mount namespace with one mount.
func emptyRoot() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	ctx, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(ctx)
	if err := unix.FsconfigSetString(ctx, "nr_blocks", "1"); err != nil {
		return os.NewSyscallError("fsconfig", err)
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return os.NewSyscallError("fsconfig", err)
	}
	root, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(root)
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return os.NewSyscallError("move_mount", err)
	}
	if err := unix.Fchdir(root); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return os.NewSyscallError("pivot_root", err)
	}
	return os.NewSyscallError("umount2", unix.Unmount(".", unix.MNT_DETACH))
}
