// Package cgroup makes, limits, measures, kills and removes control groups on
// cgroup v2, v1 and hybrid hosts alike. It is called by the engine (containers,
// pods), by the agent (the kubepods tree) and by the OCI command line.
//
// State is the kernel's own: a Group is only a name, nothing is cached about
// it, and nothing has to be reloaded after a crash. Groups are made at absolute
// paths below each hierarchy's root, as the cgroupfs driver of other runtimes
// does; with a Driver (cgroup/systemd) those that are units are made by that.
//
// On a hybrid host a group exists in every v1 hierarchy and in the cgroup2 tree
// beside them: processes that were born in Dir can be killed in one step and
// waited for without polling, and those that were not are found through v1.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
)

// Hierarchy is the host's cgroup set-up, found once at start. Safe for
// concurrent use.
type Hierarchy struct {
	v1      []v1Mount // without the cgroup2 mount, each mount point once
	unified string    // mount point of cgroup2, or ""
	v2      []string  // controllers of the cgroup2 tree's root
	systemd bool      // systemd runs, and its v1 hierarchy is to be joined
	driver  Driver    // nil: the file system alone
	filters filterCache
}

type v1Mount struct {
	dir         string
	controllers []string // "cpu", …, or "name=systemd"
}

// systemdV1 is systemd's own v1 hierarchy, which has no controller.
const systemdV1 = "name=systemd"

// Detect reads the mount table.
func Detect() (*Hierarchy, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	h := parseMountinfo(string(b))
	if h.unified == "" && len(h.v1) == 0 {
		return nil, errors.New("/proc/self/mountinfo: no cgroup file system is mounted")
	}
	if h.unified != "" {
		b, err := readFile(h.unified + "/cgroup.controllers")
		if errors.Is(err, os.ErrNotExist) && len(h.v1) > 0 {
			h.unified = "" // the table has mounts that others hide, too
		} else if err != nil {
			return nil, err
		}
		h.v2 = strings.Fields(b)
	}
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		h.systemd = true
	}
	return h, nil
}

// v1Controllers are the names that a v1 mount's options may hold.
var v1Controllers = []string{
	"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids",
	"hugetlb", "net_cls", "net_prio", "perf_event", "rdma", "misc", systemdV1,
}

// parseMountinfo finds the cgroup mounts in a mount table; where something is
// mounted twice, the first counts.
func parseMountinfo(table string) *Hierarchy {
	h := &Hierarchy{}
	for line := range strings.Lines(table) {
		mount, super, ok := strings.Cut(line, " - ")
		f, s := strings.Fields(mount), strings.Fields(super)
		if !ok || len(f) < 5 || len(s) < 3 {
			continue
		}
		dir := unescapeMount(f[4])
		switch s[0] {
		case "cgroup2":
			if h.unified == "" {
				h.unified = dir
			}
		case "cgroup":
			var found []string
			for o := range strings.SplitSeq(s[2], ",") {
				if _, _, known := h.v1Dir(o); !known && slices.Contains(v1Controllers, o) {
					found = append(found, o)
				}
			}
			if len(found) > 0 {
				h.v1 = append(h.v1, v1Mount{dir, found})
			}
		}
	}
	return h
}

// unescapeMount undoes the kernel's octal escapes of space, tab, newline and
// backslash.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) { // as a rule; a replacer takes long to be made
		return s
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// Unified tells whether the host uses cgroup v2 alone.
func (h *Hierarchy) Unified() bool { return len(h.v1) == 0 }

// Controllers lists the resource controllers that groups can have, sorted.
func (h *Hierarchy) Controllers() []string {
	all := slices.Clone(h.v2)
	for _, m := range h.v1 {
		for _, c := range m.controllers {
			if c != systemdV1 {
				all = append(all, c)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// HasSwap tells whether the kernel accounts swap, so that memory.swap can be
// limited.
func (h *Hierarchy) HasSwap() bool {
	if _, dir, ok := h.v1Dir("memory"); ok {
		return exists(dir + "/memory.memsw.limit_in_bytes")
	}
	// The root group has no swap files. Any other has them all or none, and the
	// file of the kernel-wide switch is there exactly then.
	b, err := os.ReadFile("/proc/cmdline")
	return err == nil && slices.Contains(h.v2, "memory") &&
		!strings.Contains(string(b), "swapaccount=0") && exists("/proc/swaps")
}

// v1Dir returns the v1 mount that a controller is bound to.
func (h *Hierarchy) v1Dir(controller string) (m v1Mount, dir string, ok bool) {
	for _, m := range h.v1 {
		if slices.Contains(m.controllers, controller) {
			return m, m.dir, true
		}
	}
	return v1Mount{}, "", false
}

// version tells which interface a controller has here: 1, 2, or 0 for none.
func (h *Hierarchy) version(controller string) int {
	if _, _, ok := h.v1Dir(controller); ok {
		return 1
	}
	if slices.Contains(h.v2, controller) {
		return 2
	}
	return 0
}

// Group names the group at path ("/kubepods/pod1/ctr"), which need not exist.
// The path is taken as absolute and cannot lead out of the tree. A path that
// cannot be used (the systemd driver's "a-b.slice:prefix:name", an empty one)
// is refused by every method that would act on it; with a Driver it can.
func (h *Hierarchy) Group(p string) *Group {
	p, err := h.UnitPath(p)
	g := &Group{h: h, path: path.Clean("/" + p)}
	switch {
	case err != nil:
		g.bad = err
	case strings.Contains(p, ":"):
		g.bad = fmt.Errorf("cgroup path %q: this is for the systemd driver, give a path without ':'", p)
	case strings.ContainsAny(p, "\x00\n"):
		g.bad = fmt.Errorf("cgroup path %q: control character", p)
	case g.path == "/":
		g.bad = fmt.Errorf("cgroup path %q: no group of one's own", p)
	}
	return g
}

// Group is one control group in every hierarchy that the host has. It is a
// name without state: copies and several at once are harmless.
type Group struct {
	h    *Hierarchy
	path string
	bad  error // why the path cannot be used
}

// Path is the group's path below each hierarchy's root.
func (g *Group) Path() string { return g.path }

// Child names a group directly below this one.
func (g *Group) Child(name string) *Group {
	c := g.h.Group(path.Join(g.path, name))
	if c.bad == nil && (g.bad != nil || path.Dir(c.path) != g.path) {
		c.bad = errors.Join(g.bad, fmt.Errorf("cgroup name %q: not a plain name", name))
	}
	return c
}

// Exists tells whether the group is there in any hierarchy.
func (g *Group) Exists() bool {
	return slices.ContainsFunc(g.dirs(), exists)
}

// dirs lists the group's directories, those of v1 first.
func (g *Group) dirs() []string {
	dirs := make([]string, 0, len(g.h.v1)+1)
	for _, m := range g.h.v1 {
		if g.h.joins(m) {
			dirs = append(dirs, m.dir+g.path)
		}
	}
	if g.h.unified != "" {
		dirs = append(dirs, g.h.unified+g.path)
	}
	return dirs
}

// everywhere is dirs and where other programs may have made the group, too:
// runc makes it in a systemd hierarchy that no systemd uses.
func (g *Group) everywhere() []string {
	dirs := g.dirs()
	for _, m := range g.h.v1 {
		if !g.h.joins(m) {
			dirs = append(dirs, m.dir+g.path)
		}
	}
	return dirs
}

// joins tells whether groups are made in a v1 hierarchy. systemd's own counts
// only where it runs: it would otherwise take our processes for its services'.
func (h *Hierarchy) joins(m v1Mount) bool {
	return h.systemd || !slices.Equal(m.controllers, []string{systemdV1})
}

// dir is the group's directory for a controller, or "".
func (g *Group) dir(controller string) string {
	if _, dir, ok := g.h.v1Dir(controller); ok {
		return dir + g.path
	}
	if slices.Contains(g.h.v2, controller) {
		return g.h.unified + g.path
	}
	return ""
}

// JoinFiles are the files a thread writes "0" to in order to join the group:
// the tasks file of each v1 hierarchy (its cgroup.procs would take a lock that
// costs milliseconds), and on cgroup v2 alone cgroup.procs, for those who
// cannot be born in Dir.
func (g *Group) JoinFiles() []string {
	if g.bad != nil {
		return nil
	}
	if g.h.Unified() {
		return []string{g.h.unified + g.path + "/cgroup.procs"}
	}
	var files []string
	for _, m := range g.h.v1 {
		if g.h.joins(m) {
			files = append(files, m.dir+g.path+"/tasks")
		}
	}
	return files
}

// JoinFile is the one of JoinFiles for a controller of cgroup v1, "" if it is not
// there.
func (g *Group) JoinFile(controller string) string {
	m, dir, ok := g.h.v1Dir(controller)
	if g.bad != nil || !ok || !g.h.joins(m) {
		return ""
	}
	return dir + g.path + "/tasks"
}

// Dir is the cgroup2 directory to be born in (CLONE_INTO_CGROUP), on hybrid
// hosts too, where the child joins JoinFiles as well; "" on a pure v1 host.
func (g *Group) Dir() string {
	if g.bad != nil || g.h.unified == "" {
		return ""
	}
	return g.h.unified + g.path
}

// Attach moves a running process with all its threads into the group. On v1
// it costs milliseconds per hierarchy: a new process should join by itself.
func (g *Group) Attach(pid int) error {
	if g.bad != nil {
		return g.bad
	}
	for _, dir := range g.dirs() {
		if err := writeFile(dir+"/cgroup.procs", fmt.Sprint(pid)); err != nil {
			return fmt.Errorf("attach process %d to cgroup %s: %w", pid, g.path, err)
		}
	}
	return nil
}
