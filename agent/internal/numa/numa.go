// Package numa decides which processors and which memory of a machine a container
// gets for itself: the machine's topology as a value (Read makes it from /sys), and
// on it pure functions that choose processors (Take), say which NUMA nodes would do
// for something (CPUHints, Memory.Hints, DeviceHints), and agree on nodes that do for
// all of a container's needs (Policy.Merge). They follow the kubelet's CPU, memory and
// topology managers (KEP-2625, 693, 1769) as far as a user can tell.
//
// Who has what is not kept here: see package pinning.
package numa

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// CPUs is a set of processors, in order. Sets are never changed, only made anew.
type CPUs []int

// MaxCPUs is what Linux can be built for.
const MaxCPUs = 8192

// Parse reads a list as the kernel writes it: "0,4-7"; nothing is the empty set.
func Parse(list string) (CPUs, error) {
	list = strings.TrimSpace(list)
	if list == "" {
		return nil, nil
	}
	var out CPUs
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		a, err := strconv.Atoi(from)
		b := a
		if err == nil && isRange {
			b, err = strconv.Atoi(to)
		}
		if err != nil || a < 0 || b < a || b >= MaxCPUs {
			return nil, fmt.Errorf("%q is no list of processors", list)
		}
		for ; a <= b; a++ {
			out = append(out, a)
		}
	}
	return NewCPUs(out...), nil
}

// NewCPUs makes a set.
func NewCPUs(ids ...int) CPUs {
	out := slices.Clone(ids)
	slices.Sort(out)
	return slices.Compact(out)
}

// String is what Parse reads.
func (c CPUs) String() string {
	var parts []string
	for i := 0; i < len(c); {
		j := i
		for j+1 < len(c) && c[j+1] == c[j]+1 {
			j++
		}
		switch {
		case i == j:
			parts = append(parts, strconv.Itoa(c[i]))
		default:
			parts = append(parts, fmt.Sprintf("%d-%d", c[i], c[j]))
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}

// MarshalText is String.
func (c CPUs) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText is Parse.
func (c *CPUs) UnmarshalText(text []byte) (err error) {
	*c, err = Parse(string(text))
	return err
}

// Has tells whether a processor is in the set.
func (c CPUs) Has(id int) bool {
	_, ok := slices.BinarySearch(c, id)
	return ok
}

// Only are those for which keep is true.
func (c CPUs) Only(keep func(id int) bool) (out CPUs) {
	for _, id := range c {
		if keep(id) {
			out = append(out, id)
		}
	}
	return out
}

// And are those of both sets.
func (c CPUs) And(d CPUs) CPUs { return c.Only(d.Has) }

// Minus are those that are not in the other.
func (c CPUs) Minus(d CPUs) CPUs { return c.Only(func(id int) bool { return !d.Has(id) }) }

// Or are those of either set.
func (c CPUs) Or(d CPUs) CPUs { return NewCPUs(slices.Concat(c, d)...) }

// Equal compares sets.
func (c CPUs) Equal(d CPUs) bool { return slices.Equal(c, d) }

// Mask is a set of NUMA nodes by their numbers in Machine.Nodes, not by their IDs.
type Mask uint64

// MaxNodes is what a Mask can hold.
const MaxNodes = 64

// Has tells whether a node is in the mask.
func (m Mask) Has(node int) bool { return m>>node&1 == 1 }

// Count is how many nodes there are.
func (m Mask) Count() (n int) {
	for ; m != 0; m &= m - 1 {
		n++
	}
	return n
}

// narrower compares masks: fewer nodes, then the lower ones.
func (m Mask) narrower(than Mask) bool {
	return cmp.Or(cmp.Compare(m.Count(), than.Count()), cmp.Compare(m, than)) < 0
}
