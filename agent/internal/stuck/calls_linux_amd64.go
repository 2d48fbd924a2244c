package stuck

import "golang.org/x/sys/unix"

func others() []call {
	return []call{
		{unix.SYS_OPEN, "open"}, {unix.SYS_STAT, "stat"}, {unix.SYS_LSTAT, "lstat"}, {unix.SYS_NEWFSTATAT, "newfstatat"},
		{unix.SYS_ACCESS, "access"}, {unix.SYS_UNLINK, "unlink"}, {unix.SYS_RENAME, "rename"}, {unix.SYS_MKDIR, "mkdir"},
		{unix.SYS_RMDIR, "rmdir"}, {unix.SYS_READLINK, "readlink"}, {unix.SYS_VFORK, "vfork"}, {unix.SYS_GETDENTS, "getdents"},
	}
}
