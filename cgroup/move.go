package cgroup

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Move moves a process with all its threads into the group, in every hierarchy. A
// process that is gone is unix.ESRCH.
func (g *Group) Move(pid int) error {
	if g.bad != nil {
		return g.bad
	}
	for _, dir := range g.dirs() {
		if err := writeFile(dir+"/cgroup.procs", strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("move process %d into cgroup %s: %w", pid, g.path, err)
		}
	}
	return nil
}

// Directly lists the processes that are in the group at path itself, not in one
// below it, in any of the hierarchies that groups are made in. "/" is the root.
func (h *Hierarchy) Directly(p string) ([]int, error) {
	var pids []int
	for _, dir := range (&Group{h: h, path: strings.TrimSuffix(path.Clean("/"+p), "/")}).dirs() {
		s, err := readFile(dir + "/cgroup.procs")
		if err != nil {
			return nil, fmt.Errorf("list processes of cgroup %s: %w", p, err)
		}
		pids = append(pids, parseProcs(s)...)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}
