package cgroup

import (
	"fmt"
	"os"
	"strings"
)

// HugetlbUsage is what a group has of huge pages of one size, in bytes.
type HugetlbUsage struct {
	Usage uint64
	Max   *uint64 // the most there ever was, nil where the kernel does not tell
	Hits  uint64  // of the limit
}

// Hugetlb reads what the group has of huge pages, by their size ("2MB"); nothing
// where the host has no hugetlb controller.
func (g *Group) Hugetlb() (map[string]HugetlbUsage, error) {
	if g.bad != nil {
		return nil, g.bad
	}
	version, all := g.h.version("hugetlb"), map[string]HugetlbUsage{}
	if version == 0 {
		return all, nil
	}
	dir := g.dir("hugetlb")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("statistics of cgroup %s: %w", g.path, err)
	}
	r := statsReader{g: g}
	for _, e := range entries {
		size, file, _ := strings.Cut(strings.TrimPrefix(e.Name(), "hugetlb."), ".")
		base := "hugetlb." + size
		switch {
		case version == 2 && file == "current":
			u := HugetlbUsage{Usage: r.uint("hugetlb", base+".current")}
			u.Hits = r.keyed(dir, base+".events")["max"]
			all[size] = u
		case version == 1 && file == "usage_in_bytes":
			u := HugetlbUsage{Usage: r.uint("hugetlb", base+".usage_in_bytes"), Hits: r.uint("hugetlb", base+".failcnt")}
			max := r.uint("hugetlb", base+".max_usage_in_bytes")
			u.Max, all[size] = &max, u
		}
	}
	if r.err != nil {
		return nil, fmt.Errorf("statistics of cgroup %s: %w", g.path, r.err)
	}
	return all, nil
}
