// Package stuck finds processes that the kernel does not let end, whatever they
// are sent: those in an uninterruptible sleep, as of a network file system that
// does not answer or a broken disk. It reads /proc, and there only what never
// waits for the process itself. Nothing is kept.
package stuck

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"podstead/sys"
)

// Process is one that is stuck.
type Process struct {
	Pid     int
	Name    string   // its command, as the kernel has it
	Syscall string   // that it is in: "read", or a number; "" if that is not known
	Where   []string // functions of the kernel, the innermost first; may be empty
}

// String is "cat (pid 12) in read, fuse_simple_request".
func (p Process) String() string {
	s := fmt.Sprintf("process %s (pid %d) does not leave the kernel", p.Name, p.Pid)
	if p.Syscall != "" {
		s += ", in the system call " + p.Syscall
	}
	if len(p.Where) > 0 {
		s += " (" + strings.Join(p.Where, " < ") + ")"
	}
	return s
}

// Find returns those of pids that are stuck now; proc is /proc.
func Find(proc string, pids []int) (out []Process) {
	for _, pid := range pids {
		dir := filepath.Join(proc, strconv.Itoa(pid))
		// A thread may be stuck while the others have ended.
		threads, _ := filepath.Glob(filepath.Join(dir, "task", "[0-9]*"))
		for _, thread := range threads {
			name, fields := sys.ParseStat([]byte(read(thread, "stat")))
			if len(fields) == 0 || fields[0] != "D" {
				continue
			}
			p := Process{Pid: pid, Name: name, Syscall: parseSyscall(read(thread, "syscall")), Where: parseStack(read(thread, "stack"))}
			if wchan := read(thread, "wchan"); len(p.Where) == 0 && wchan != "" && wchan != "0" {
				p.Where = []string{wchan}
			}
			out = append(out, p)
			break
		}
	}
	return out
}

// read is the file's text, "" if it has ended or that is not for us to know.
func read(dir, name string) string {
	data, _ := os.ReadFile(filepath.Join(dir, name))
	return strings.TrimSpace(string(data))
}

// parseSyscall names the call of "0 0x3 …"; -1 is a process in none, "running"
// one that is not asleep.
func parseSyscall(text string) string {
	field, _, _ := strings.Cut(text, " ")
	n, err := strconv.Atoi(field)
	if err != nil || n < 0 {
		return ""
	}
	for _, c := range blocking() {
		if c.number == n {
			return c.name
		}
	}
	return "number " + field
}

type call struct {
	number int
	name   string
}

// blocking are the calls that file systems and devices hold up. (Those that not
// all architectures have are in others.)
func blocking() []call {
	return append([]call{
		{unix.SYS_READ, "read"}, {unix.SYS_WRITE, "write"}, {unix.SYS_PREAD64, "pread64"}, {unix.SYS_PWRITE64, "pwrite64"},
		{unix.SYS_READV, "readv"}, {unix.SYS_WRITEV, "writev"}, {unix.SYS_OPENAT, "openat"}, {unix.SYS_OPENAT2, "openat2"}, {unix.SYS_CLOSE, "close"},
		{unix.SYS_FSYNC, "fsync"}, {unix.SYS_FDATASYNC, "fdatasync"}, {unix.SYS_SYNC, "sync"}, {unix.SYS_SYNCFS, "syncfs"},
		{unix.SYS_STATX, "statx"}, {unix.SYS_FSTAT, "fstat"}, {unix.SYS_STATFS, "statfs"}, {unix.SYS_FACCESSAT, "faccessat"},
		{unix.SYS_GETDENTS64, "getdents64"}, {unix.SYS_IOCTL, "ioctl"}, {unix.SYS_UNLINKAT, "unlinkat"}, {unix.SYS_MKDIRAT, "mkdirat"},
		{unix.SYS_READLINKAT, "readlinkat"}, {unix.SYS_FTRUNCATE, "ftruncate"}, {unix.SYS_FALLOCATE, "fallocate"}, {unix.SYS_FCNTL, "fcntl"},
		{unix.SYS_FLOCK, "flock"}, {unix.SYS_LSEEK, "lseek"}, {unix.SYS_SENDFILE, "sendfile"}, {unix.SYS_COPY_FILE_RANGE, "copy_file_range"},
		{unix.SYS_MOUNT, "mount"}, {unix.SYS_UMOUNT2, "umount2"}, {unix.SYS_CHDIR, "chdir"}, {unix.SYS_EXECVE, "execve"},
		{unix.SYS_EXIT, "exit"}, {unix.SYS_EXIT_GROUP, "exit_group"}, {unix.SYS_MUNMAP, "munmap"}, {unix.SYS_MSYNC, "msync"},
	}, others()...)
}

// parseStack takes the names of "[<0>] fuse_simple_request+0x1a/0x30": the
// innermost few.
func parseStack(text string) (out []string) {
	const most = 4
	for line := range strings.Lines(text) {
		_, name, ok := strings.Cut(strings.TrimSpace(line), "] ")
		if !ok || len(out) == most {
			continue
		}
		name, _, _ = strings.Cut(name, "+")
		out = append(out, name)
	}
	return out
}
