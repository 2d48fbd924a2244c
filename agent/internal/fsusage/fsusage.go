// Package fsusage asks file systems how full they are. One that does not answer,
// of a network, say, or of a program in user space, holds up nobody but a process
// that is there to ask it: a caller that is killed ends, which it would not with
// a thread of its own in the kernel. Nothing is kept.
package fsusage

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Usage is how full a file system is, in bytes and inodes. Available is what is
// left for those who are not root.
type Usage struct {
	Capacity, Available, Used      uint64
	Inodes, InodesFree, InodesUsed uint64
}

// Of asks the file system that a path is on, and waits for it.
func Of(path string) (Usage, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Usage{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return usage(&st), nil
}

func usage(st *unix.Statfs_t) Usage {
	block := uint64(st.Bsize)
	return Usage{Capacity: st.Blocks * block, Available: st.Bavail * block, Used: (st.Blocks - st.Bfree) * block,
		Inodes: st.Files, InodesFree: st.Ffree, InodesUsed: st.Files - min(st.Files, st.Ffree)}
}

// Asker asks file systems of any kind.
type Asker struct {
	// Program writes what Answer does of the path that is its last argument. Without
	// one, there is nobody else to ask: Ask waits itself.
	Program []string
}

// Ask returns how full the file system at a path is. It waits for one that does
// not answer, past the end of ctx, too, for as long as the kernel holds the
// process that asked: who calls again meanwhile has another one wait.
func (a Asker) Ask(ctx context.Context, path string) (Usage, error) {
	if u, ok := near(path); ok {
		return u, nil
	}
	if len(a.Program) == 0 {
		return Of(path)
	}
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, a.Program[0], append(a.Program[1:len(a.Program):len(a.Program)], path)...)
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return Usage{}, fmt.Errorf("%s: the file system does not answer: %w", path, ctx.Err())
		}
		return Usage{}, fmt.Errorf("ask for the file system of %s: %w: %s", path, err, strings.TrimSpace(said.String()))
	}
	return parse(out.String())
}

// Answer writes how full the file system at a path is, for Ask.
func Answer(w io.Writer, path string) error {
	u, err := Of(path)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, u.Capacity, u.Available, u.Used, u.Inodes, u.InodesFree, u.InodesUsed)
	return err
}

func parse(text string) (u Usage, err error) {
	if _, err := fmt.Sscanln(text, &u.Capacity, &u.Available, &u.Used, &u.Inodes, &u.InodesFree, &u.InodesUsed); err != nil {
		return Usage{}, fmt.Errorf("what was answered of a file system: %q: %w", text, err)
	}
	return u, nil
}

// resolveCached is RESOLVE_CACHED of linux/openat2.h.
const resolveCached = 0x20

// near asks here and now what is known to answer: a file system of the kernel's
// own, on this machine, to which the path leads without anybody being asked for
// a part of it.
func near(path string) (Usage, bool) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Usage{}, false
	}
	defer mounts.Close()
	if !filepath.IsAbs(path) || !own(typeOf(mounts, filepath.Clean(path))) {
		return Usage{}, false
	}
	// What the kernel does not know by heart (Linux 5.12), and links, which may lead
	// to other file systems, are for others to follow.
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC,
		Resolve: resolveCached | unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return Usage{}, false
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return Usage{}, false
	}
	return usage(&st), true
}

// Local tells whether a look at a path asks nobody outside the kernel: whether all
// file systems that it leads through, by links, too, are the kernel's own. What is
// not there is where it would be.
func Local(path string) bool {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || !filepath.IsAbs(path) {
		return false
	}
	at, rest := "/", strings.Split(filepath.Clean(path), "/")
	for links := 0; len(rest) > 0; {
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		if next == at {
			continue
		}
		if !own(typeOf(bytes.NewReader(table), next)) {
			return false
		}
		st, err := os.Lstat(next)
		if errors.Is(err, fs.ErrNotExist) {
			return true
		}
		if err != nil {
			return false
		}
		if st.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		to, err := os.Readlink(next)
		if links++; err != nil || links > maxLinks {
			return false
		}
		if filepath.IsAbs(to) {
			at = "/"
		}
		rest = append(strings.Split(to, "/"), rest...)
	}
	return true
}

// maxLinks is how many links a path may lead through, as the kernel has it.
const maxLinks = 40

// typeOf is that of the file system at a path, as the table of mounts has it; ""
// if that cannot be told.
func typeOf(mounts io.Reader, path string) (kind string) {
	longest := -1
	lines := bufio.NewScanner(mounts)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 {
			continue
		}
		at := unescape(fields[4])
		within := at == "/" || path == at || strings.HasPrefix(path, at+"/")
		if within && len(at) >= longest { // the later one covers the earlier one
			longest = len(at)
			kind, _, _ = strings.Cut(after, " ")
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return ""
	}
	return kind
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// own tells whether a type of file systems asks nobody outside the kernel how
// full they are.
func own(kind string) bool {
	switch kind {
	case "ext2", "ext3", "ext4", "xfs", "btrfs", "bcachefs", "f2fs", "zfs", "jfs", "tmpfs", "ramfs", "devtmpfs", "hugetlbfs",
		"proc", "sysfs", "devpts", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs", "bpf", "mqueue", "rootfs",
		"overlay", "vfat", "exfat", "ntfs3", "erofs", "squashfs", "iso9660", "udf":
		return true
	}
	return false
}
