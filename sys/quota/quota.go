// Package quota uses the project quotas of ext4 and XFS as a meter: whatever is
// made below a directory belongs to the directory's project, and the kernel
// keeps, for each project, how many blocks and inodes its files take. Asking for
// it takes microseconds, however many files there are. No limits are set.
//
// A file system has that if it counts by project: ext4 with the features quota
// and project, XFS mounted with prjquota (or pqnoenforce). The system call for it
// is as old as Linux 5.14. Elsewhere Open says errors.ErrUnsupported.
//
// What who uses the figures has to know:
//
//   - Outside the initial user namespace nobody can change the project of a file
//     or what a directory passes on. Inside it, a file's owner can, by
//     FS_IOC_FSSETXATTR, FS_IOC_SETFLAGS or file_setattr(2), through an overlay,
//     too: those can hide what they have, and charge it to a project whose number
//     they know.
//   - A file cannot be linked or renamed into a directory that passes on another
//     project (EXDEV).
//   - The figures are as du's, but that files which are deleted and still open
//     are counted, and blocks that XFS keeps ready behind a growing file.
//
// The package is called by whoever owns directories: the engine for writable
// layers, the agent for emptyDirs. It keeps nothing on disk: who takes a number
// from a Pool records it, or lets the directory be the record (Pool.Add).
package quota

import (
	"errors"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Usage is what the files of a project take.
type Usage struct{ Bytes, Inodes uint64 }

// What <linux/quota.h> has. Projects are its third kind of quotas.
const (
	getQuota = 0x800007<<8 | 2 // Q_GETQUOTA, PRJQUOTA
)

// dqblk is the kernel's struct if_dqblk. Limits are in blocks of 1 KiB, space is
// in bytes.
type dqblk struct {
	hardBlocks, softBlocks uint64
	space                  uint64
	hardInodes, softInodes uint64
	inodes                 uint64
	blockTime, inodeTime   uint64
	valid                  uint32
	_                      uint32
}

// FileSystem is one that counts by project.
type FileSystem struct{ dir *os.File }

// Usage tells what a project's files take: nothing if there is no such project.
func (f *FileSystem) Usage(project uint32) (Usage, error) {
	d, err := f.get(project)
	return Usage{Bytes: d.space, Inodes: d.inodes}, err
}

// idle tells that a project has no files and no limits: nobody uses it, or nobody
// has written yet.
func (f *FileSystem) idle(project uint32) (bool, error) {
	d, err := f.get(project)
	return d.space|d.inodes|d.hardBlocks|d.softBlocks|d.hardInodes|d.softInodes == 0, err
}

func (f *FileSystem) get(project uint32) (dqblk, error) {
	var d dqblk
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, f.dir.Fd(), getQuota, uintptr(project), uintptr(unsafe.Pointer(&d)), 0, 0)
	switch errno {
	case 0:
		return d, nil
	case unix.ENOENT: // XFS: it was never used
		return dqblk{}, nil
	}
	return dqblk{}, &fs.PathError{Op: "quotactl", Path: f.dir.Name(), Err: errno}
}

// unsupported tells which errors mean that there are no project quotas: an old
// kernel, a file system that has none or does not count, a host in a container.
func unsupported(err error) bool {
	for _, e := range []error{unix.ENOSYS, unix.EINVAL, unix.ESRCH, unix.EOPNOTSUPP, unix.ENOTTY, unix.EPERM, unix.EOVERFLOW} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// What <linux/fs.h> has.
const (
	fsGetXattr          = 0x801c581f // FS_IOC_FSGETXATTR
	fsSetXattr          = 0x401c5820 // FS_IOC_FSSETXATTR
	xflagProjectInherit = 0x200      // FS_XFLAG_PROJINHERIT
)

// fsxattr is the kernel's struct fsxattr.
type fsxattr struct {
	xflags, extsize, nextents uint32
	project                   uint32
	cowextsize                uint32
	_                         [8]byte
}

// Assign gives an empty directory to a project: what is made in it belongs to
// that, too.
func Assign(dir string, project uint32) error {
	f, err := os.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return setProject(f, project, xflagProjectInherit)
}

// projectOf is the project that a directory passes on, 0 if it does not.
func projectOf(dir string) (uint32, error) {
	f, err := os.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var x fsxattr
	if err := fsXattr(f, fsGetXattr, &x); err != nil || x.xflags&xflagProjectInherit == 0 {
		return 0, err
	}
	return x.project, nil
}

func setProject(f *os.File, project, flags uint32) error {
	var x fsxattr
	if err := fsXattr(f, fsGetXattr, &x); err != nil {
		return err
	}
	x.project, x.xflags = project, x.xflags|flags
	return fsXattr(f, fsSetXattr, &x)
}

func fsXattr(f *os.File, call uintptr, x *fsxattr) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), call, uintptr(unsafe.Pointer(x))); errno != 0 {
		return &fs.PathError{Op: "set the project of", Path: f.Name(), Err: errno}
	}
	return nil
}
