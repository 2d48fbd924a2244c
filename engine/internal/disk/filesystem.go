package disk

import (
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Filesystem is the one that a directory is on.
type Filesystem struct {
	Device             string // what is mounted: "/dev/vda1"
	Bytes              uint64
	Inodes, InodesFree uint64
}

// FilesystemOf looks at the file system of dir.
func FilesystemOf(dir string) (Filesystem, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return Filesystem{}, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return Filesystem{}, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	number := strconv.FormatUint(uint64(unix.Major(st.Dev)), 10) + ":" + strconv.FormatUint(uint64(unix.Minor(st.Dev)), 10)
	f := Filesystem{Device: number, Bytes: s.Blocks * uint64(s.Bsize), Inodes: s.Files, InodesFree: s.Ffree}
	if table, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		if source := mountSource(string(table), number); source != "" {
			f.Device = source
		}
	}
	return f, nil
}

// mountSource finds what is mounted of a device number in a mount table.
func mountSource(table, number string) string {
	for line := range strings.Lines(table) {
		mount, super, ok := strings.Cut(line, " - ")
		f, s := strings.Fields(mount), strings.Fields(super)
		if ok && len(f) > 2 && len(s) > 1 && f[2] == number {
			return s[1]
		}
	}
	return ""
}

// DeviceName names a block device as /dev has it, "" if nobody knows.
func DeviceName(major, minor uint32) string {
	number := strconv.FormatUint(uint64(major), 10) + ":" + strconv.FormatUint(uint64(minor), 10)
	b, err := os.ReadFile("/sys/dev/block/" + number + "/uevent")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
			return "/dev/" + name
		}
	}
	return ""
}
