// Package pressure reads how much of what pods share is left on the host, for
// internal/eviction to judge: memory, processes, file systems. It waits for the
// kernel to tell of stalls for memory, and measures directories. It keeps
// nothing.
package pressure

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"podstead/agent/internal/eviction"
)

// Host is where to look.
type Host struct {
	// NodeFs is where pods have their directories; ImageFs where the runtime keeps
	// images and what containers write, "" if that is not known.
	NodeFs, ImageFs string
}

// Read reads all signals that it can; the error says what it could not.
func (h Host) Read() (eviction.Observation, error) {
	seen := eviction.Observation{}
	var errs []error
	take := func(s eviction.Signal, r eviction.Reading, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s, err))
		} else if r.Capacity > 0 {
			seen[s] = r
		}
	}
	memory, err := memory()
	take(eviction.MemoryAvailable, memory, err)
	pids, err := processes()
	take(eviction.PidsAvailable, pids, err)
	space, inodes, err := disk(h.NodeFs)
	take(eviction.NodeFsAvailable, space, err)
	take(eviction.NodeFsInodes, inodes, err)
	if h.ImageFs != "" {
		space, inodes, err = disk(h.ImageFs)
		take(eviction.ImageFsAvailable, space, err)
		take(eviction.ImageFsInodes, inodes, err)
	}
	return seen, errors.Join(errs...)
}

// OwnImageFs tells whether images are on another file system than pods.
func (h Host) OwnImageFs() bool {
	var a, b unix.Stat_t
	return h.ImageFs != "" && unix.Stat(h.NodeFs, &a) == nil && unix.Stat(h.ImageFs, &b) == nil && a.Dev != b.Dev
}

// Used is how many bytes the file systems of paths hold, each counted once.
func Used(paths ...string) int64 {
	seen := map[uint64]bool{}
	used := int64(0)
	for _, p := range paths {
		var st unix.Stat_t
		var fs unix.Statfs_t
		if p == "" || unix.Stat(p, &st) != nil || seen[st.Dev] || unix.Statfs(p, &fs) != nil {
			continue
		}
		seen[st.Dev] = true
		used += int64(fs.Blocks-fs.Bfree) * fs.Bsize
	}
	return used
}

// memory is what the kernel says could be given to programs without swapping.
func memory() (eviction.Reading, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return eviction.Reading{}, err
	}
	defer f.Close()
	var r eviction.Reading
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(fields[1], 10, 64)
		switch fields[0] {
		case "MemTotal:":
			r.Capacity = n << 10
		case "MemAvailable:":
			r.Available = n << 10
			return r, nil
		}
	}
	return r, errors.Join(errors.New("/proc/meminfo has no MemAvailable"), lines.Err())
}

// processes counts threads, which is what the kernel bounds.
func processes() (r eviction.Reading, err error) {
	load, err := os.ReadFile("/proc/loadavg") // 0.1 0.2 0.3 running/all last
	if err != nil {
		return r, err
	}
	fields := strings.Fields(string(load))
	if len(fields) < 4 {
		return r, fmt.Errorf("/proc/loadavg: %q", load)
	}
	_, all, _ := strings.Cut(fields[3], "/")
	used, err := strconv.ParseInt(all, 10, 64)
	if err != nil {
		return r, fmt.Errorf("/proc/loadavg: %w", err)
	}
	for _, bound := range []string{"pid_max", "threads-max"} {
		n, err := number("/proc/sys/kernel/" + bound)
		if err != nil {
			return r, err
		}
		if r.Capacity == 0 || n < r.Capacity {
			r.Capacity = n
		}
	}
	r.Available = max(r.Capacity-used, 0)
	return r, nil
}

func number(file string) (int64, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return n, nil
}

// disk has no inodes where the file system makes them as it goes (btrfs).
func disk(path string) (space, inodes eviction.Reading, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return space, inodes, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	space = eviction.Reading{Available: int64(st.Bavail) * st.Bsize, Capacity: int64(st.Blocks) * st.Bsize}
	inodes = eviction.Reading{Available: int64(st.Ffree), Capacity: int64(st.Files)}
	return space, inodes, nil
}
