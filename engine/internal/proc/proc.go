// Package proc looks at the processes of a container through /proc: what they
// have open, and what their threads do. How many entries one look takes is
// bounded; a figure that would take more is not given. It keeps nothing, and is
// called by the engine alone.
package proc

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"podstead/sys"
)

// Limits of one look at a container.
const (
	MaxThreads = 4096
	maxFiles   = 20_000
)

// Files counts open files and sockets of processes. Both are nil if there are
// too many to look at. A process that ends meanwhile counts as far as it was
// seen.
func Files(pids []int) (files, sockets *uint64) {
	var f, s uint64
	for _, pid := range pids {
		dir := "/proc/" + strconv.Itoa(pid) + "/fd"
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		open, connected := count(fd, maxFiles-f)
		unix.Close(fd)
		f, s = f+open, s+connected
		if f >= maxFiles {
			return nil, nil
		}
	}
	return &f, &s
}

// count reads a directory of descriptors, at most limit of them.
func count(dir int, limit uint64) (files, sockets uint64) {
	buf := make([]byte, 4<<10)
	target := make([]byte, 8)
	var names []string
	for {
		n, err := unix.ReadDirent(dir, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return files, sockets
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names[:0])
		for _, name := range names {
			if files++; files >= limit {
				return files, sockets
			}
			if n, err := unix.Readlinkat(dir, name, target); err == nil && string(target[:n]) == "socket:[" {
				sockets++
			}
		}
	}
}

// States counts threads by what they do.
type States struct {
	Running, Sleeping, Stopped, Uninterruptible uint64
}

// StatesOf looks at threads by their ids. Those that have ended are left out.
func StatesOf(tids []int) States {
	var s States
	for _, tid := range tids {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/stat")
		if err != nil {
			continue
		}
		switch state(string(b)) {
		case 'R':
			s.Running++
		case 'S', 'I':
			s.Sleeping++
		case 'T', 't':
			s.Stopped++
		case 'D':
			s.Uninterruptible++
		}
	}
	return s
}

// state finds the state in /proc/ID/stat, 0 if that is none.
func state(stat string) byte {
	_, fields := sys.ParseStat([]byte(stat))
	if len(fields) == 0 {
		return 0
	}
	return fields[0][0]
}

// MaxOpenFiles is the soft limit of a process, nil if it has ended.
func MaxOpenFiles(pid int) *uint64 {
	if pid <= 0 {
		return nil
	}
	// prlimit would need a capability for processes of other users.
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/limits")
	if err != nil {
		return nil
	}
	return maxOpenFiles(string(b))
}

func maxOpenFiles(limits string) *uint64 {
	for line := range strings.Lines(limits) {
		rest, ok := strings.CutPrefix(line, "Max open files")
		f := strings.Fields(rest)
		if !ok || len(f) == 0 {
			continue
		}
		if n, err := strconv.ParseUint(f[0], 10, 64); err == nil {
			return &n
		}
	}
	return nil
}
