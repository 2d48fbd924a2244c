package cgroup

import (
	"os"
	"slices"
	"strings"
)

// Hugepages is what a group uses of the huge pages of one size.
type Hugepages struct {
	Size     string // as the kernel's files have it: "2MB"
	Bytes    uint64
	MaxBytes *uint64 // the most there ever was; cgroup2 does not tell
	Hits     uint64  // allocations that the limit forbade
}

// hugetlbFiles are the ends of the controller's file names.
type hugetlbFiles struct {
	usage, most, hits string
}

var (
	hugetlbV1 = hugetlbFiles{".usage_in_bytes", ".max_usage_in_bytes", ".failcnt"}
	hugetlbV2 = hugetlbFiles{usage: ".current", hits: ".events"}
)

func (r *statsReader) hugepages(u *Usage) {
	if r.err != nil {
		return
	}
	switch r.g.h.version("hugetlb") {
	case 1:
		u.Hugepages = r.hugepagesIn(r.g.dir("hugetlb"), hugetlbV1)
	case 2:
		u.Hugepages = r.hugepagesIn(r.g.dir("hugetlb"), hugetlbV2)
	}
}

// hugepagesIn reads what there is for each size of pages; nothing if the
// controller is not enabled for the group.
func (r *statsReader) hugepagesIn(dir string, files hugetlbFiles) []Hugepages {
	entries, err := os.ReadDir(dir)
	if err != nil {
		r.err = err
		return nil
	}
	var all []Hugepages
	for _, e := range entries {
		size, ok := strings.CutPrefix(e.Name(), "hugetlb.")
		if ok {
			size, ok = strings.CutSuffix(size, files.usage)
		}
		if !ok || strings.HasSuffix(size, ".rsvd") {
			continue
		}
		all = append(all, r.hugepagesOf(dir, size, files))
	}
	slices.SortFunc(all, func(a, b Hugepages) int { return strings.Compare(a.Size, b.Size) })
	return all
}

func (r *statsReader) hugepagesOf(dir, size string, files hugetlbFiles) Hugepages {
	read := func(file string) uint64 {
		if r.err != nil {
			return 0
		}
		var n uint64
		n, r.err = readUint(dir + "/hugetlb." + size + file)
		return n
	}
	h := Hugepages{Size: size, Bytes: read(files.usage)}
	if files.most == "" {
		h.Hits = r.keyed(dir, "hugetlb."+size+files.hits)["max"]
		return h
	}
	h.MaxBytes, h.Hits = new(read(files.most)), read(files.hits)
	return h
}
