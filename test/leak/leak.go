// Package leak checks that a test leaves nothing behind: mounts, processes,
// cgroups, network interfaces, file descriptors and files. It is
// meant for tests on a machine of their own (test/host), where nobody else
// makes any.
//
//	func TestPod(t *testing.T) {
//		leak.Check(t, leak.Scope{Cgroup: host.Cgroup(), Dirs: []string{state}})
//		…
//	}
package leak

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Scope says what belongs to the test beside mounts, processes, interfaces and
// descriptors.
type Scope struct {
	// Cgroup is a path below each hierarchy's root; what is in it counts.
	Cgroup string
	// Dirs are directories whose entries count.
	Dirs []string
	// Settle bounds how long is waited for what ends by itself, such as dying
	// cgroups and namespaces; 10 seconds if zero.
	Settle time.Duration
}

// Check takes a picture now and compares it with one at the end of the test,
// after all clean-up that the test registers later.
func Check(t testing.TB, s Scope) {
	t.Helper()
	before := Take(s)
	t.Cleanup(func() {
		if t.Failed() {
			return // whoever fails half-way leaves something, and says why itself
		}
		for _, left := range Since(before, s) {
			t.Errorf("leaked: %s", left)
		}
	})
}

// Snapshot is a picture of what is there: lines, each as often as it is there.
type Snapshot map[string]int

// Take takes a picture.
func Take(s Scope) Snapshot {
	p := Snapshot{}
	p.mounts()
	p.processes()
	p.interfaces()
	p.descriptors()
	p.cgroups(s.Cgroup)
	for _, d := range s.Dirs {
		p.files(d)
	}
	return p
}

// Since returns what is there now and was not in before, once nothing of it
// goes away by itself any more or the time is over.
func Since(before Snapshot, s Scope) []string {
	limit := s.Settle
	if limit == 0 {
		limit = time.Minute
	}
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		left := Take(s).minus(before)
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		<-tick.C
	}
}

func (p Snapshot) minus(before Snapshot) []string {
	var left []string
	for what, n := range p {
		if more := n - before[what]; more > 0 {
			left = append(left, fmt.Sprintf("%s (%d)", what, more))
		}
	}
	slices.Sort(left)
	return left
}

func (p Snapshot) add(kind, what string) { p[kind+" "+what]++ }

func (p Snapshot) mounts() {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 {
			p.add("mount", f[4])
		}
	}
}

// processes lists all but this process and its threads.
func (p Snapshot) processes() {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		cmdline, err := os.ReadFile(dir + "/cmdline")
		if err != nil || filepath.Base(dir) == fmt.Sprint(os.Getpid()) {
			continue
		}
		if len(cmdline) == 0 {
			if stat, err := os.ReadFile(dir + "/stat"); err != nil || strings.Contains(string(stat), ") Z ") {
				continue // its parent is about to reap it
			}
		}
		p.add("process", filepath.Base(dir)+" "+strings.ReplaceAll(string(cmdline), "\x00", " "))
	}
}

func (p Snapshot) interfaces() {
	list, _ := net.Interfaces()
	for _, i := range list {
		p.add("network interface", i.Name)
	}
}

var inode = regexp.MustCompile(`\[[0-9]+\]$`)

// descriptors counts open files by what they are. Go's own poller is passed
// over: it is made when it is first needed. So are loaded filters of devices,
// which package cgroup keeps, a few at most.
func (p Snapshot) descriptors() {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		target, err := os.Readlink("/proc/self/fd/" + name)
		if err != nil || strings.Contains(target, "[event") || strings.HasSuffix(target, "bpf-prog") || strings.HasSuffix(target, "/fd") {
			continue
		}
		p.add("descriptor", inode.ReplaceAllString(target, ""))
	}
}

func (p Snapshot) cgroups(path string) {
	if path == "" {
		return
	}
	tops, _ := filepath.Glob("/sys/fs/cgroup/*" + path)
	tops = append(tops, "/sys/fs/cgroup"+path)
	for _, top := range tops {
		filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && path != top {
				p.add("cgroup", path)
			}
			return nil
		})
	}
}

// files lists a directory tree within one file system, without what CRIU
// remembers of the kernel.
func (p Snapshot) files(dir string) {
	var top unix.Stat_t
	if unix.Lstat(dir, &top) != nil {
		return
	}
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil && st.Dev != top.Dev && d.IsDir() {
			return filepath.SkipDir
		}
		if path != "/run/criu.kdat" {
			p.add("file", path)
		}
		return nil
	})
}
