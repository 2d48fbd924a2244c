package numa

import (
	"cmp"
	"fmt"
	"slices"
)

// Options of the static CPU policy, by the names of cpuManagerPolicyOptions.
type Options struct {
	FullCores         bool // full-pcpus-only
	StrictReservation bool // strict-cpu-reservation
	ByCache           bool // prefer-align-cpus-by-uncorecache
	SpreadNodes       bool // distribute-cpus-across-numa
	AlignBySocket     bool // align-by-socket
	SpreadCores       bool // distribute-cpus-across-cores
}

// SMTError says that whole cores cannot be given.
type SMTError struct {
	Requested, PerCore int
	Free               int // processors of cores that are wholly free; -1: that is not it
}

func (e *SMTError) Error() string {
	if e.Free >= 0 {
		return fmt.Sprintf("SMT Alignment Error: not enough free physical CPUs: available physical CPUs = %d, requested CPUs = %d, CPUs per core = %d", e.Free, e.Requested, e.PerCore)
	}
	return fmt.Sprintf("SMT Alignment Error: requested %d cpus not multiple cpus per core = %d", e.Requested, e.PerCore)
}

// Take chooses n of the free processors: from the first pool as many as it has, and
// so on, each packed as closely as can be.
func (m Machine) Take(n int, o Options, pools ...CPUs) (CPUs, error) {
	var free, got CPUs
	for _, p := range pools {
		free = free.Or(p)
	}
	if o.FullCores {
		per := m.ThreadsPerCore()
		if n%per != 0 {
			return nil, &SMTError{Requested: n, PerCore: per, Free: -1}
		}
		if free = m.wholeCores(free); len(free) < n {
			return nil, &SMTError{Requested: n, PerCore: per, Free: len(free)}
		}
	}
	if len(free) < n {
		return nil, fmt.Errorf("not enough cpus available to satisfy request: requested=%d, available=%d", n, len(free))
	}
	for _, p := range pools {
		p = p.And(free).Minus(got)
		if o.FullCores {
			p = m.wholeCores(p)
		}
		k := min(n-len(got), len(p))
		if o.SpreadNodes {
			if spread := m.spread(p, k, o); spread != nil {
				got = got.Or(spread)
				continue
			}
		}
		got = got.Or(m.pack(p, k, o))
	}
	if len(got) < n { // of pools that split a core
		got = m.pack(free, n, o)
	}
	return got, nil
}

// wholeCores are those of cores of which nothing is missing.
func (m Machine) wholeCores(free CPUs) CPUs {
	var out CPUs
	for _, core := range m.groups(func(c CPU) int { return c.Core }, m.All()) {
		if len(core.And(free)) == len(core) {
			out = out.Or(core)
		}
	}
	return out
}

// groups are the processors that share something, of a set, in order.
func (m Machine) groups(by func(CPU) int, of CPUs) []CPUs {
	all := map[int]CPUs{}
	var keys []int
	for _, c := range m.CPUs {
		if !of.Has(c.ID) {
			continue
		}
		if _, ok := all[by(c)]; !ok {
			keys = append(keys, by(c))
		}
		all[by(c)] = append(all[by(c)], c.ID)
	}
	slices.Sort(keys)
	var out []CPUs
	for _, k := range keys {
		out = append(out, all[k])
	}
	return out
}

func bySocket(c CPU) int { return c.Socket }
func byNode(c CPU) int   { return c.Node }
func byCache(c CPU) int  { return c.Cache }
func byCore(c CPU) int   { return c.Core }

// pack takes whole sockets and nodes where n is that much, then whole caches if that
// is asked for, whole cores, and threads.
func (m Machine) pack(free CPUs, n int, o Options) (got CPUs) {
	levels := []func(CPU) int{bySocket, byNode}
	if m.Sockets() > len(m.Nodes) {
		levels = []func(CPU) int{byNode, bySocket}
	}
	if o.ByCache {
		levels = append(levels, byCache)
	}
	for _, by := range levels {
		for _, unit := range m.groups(by, m.All()) {
			if len(unit) <= n-len(got) && len(unit.And(free)) == len(unit) {
				got, free = got.Or(unit), free.Minus(unit)
			}
		}
	}
	rest := n - len(got)
	if rest == 0 {
		return got
	}
	from := free
	for _, by := range levels { // the rest of one of each, the one that it fills best
		units := m.groups(by, from)
		slices.SortStableFunc(units, func(a, b CPUs) int { return cmp.Compare(len(a), len(b)) })
		if i := slices.IndexFunc(units, func(c CPUs) bool { return len(c) >= rest }); i >= 0 {
			from = units[i]
		}
	}
	if per := m.ThreadsPerCore(); !o.SpreadCores {
		whole := m.inOrder(m.wholeCores(from), got, o)
		k := min(rest/per*per, len(whole))
		got, from = got.Or(NewCPUs(whole[:k]...)), from.Minus(NewCPUs(whole[:k]...))
		rest -= k
	}
	return got.Or(NewCPUs(m.inOrder(from, got, o)[:rest]...))
}

// inOrder sorts free processors as they are to be taken one after another: beside
// what was taken already, then of sockets and nodes of which the least is free, core
// by core and those first of which some are taken; or one of each core first.
func (m Machine) inOrder(free, got CPUs, o Options) []int {
	left := func(by func(CPU) int) map[int]int {
		n := map[int]int{}
		for _, c := range m.CPUs {
			if free.Has(c.ID) {
				n[by(c)]++
			}
		}
		return n
	}
	sockets, nodes, cores := left(bySocket), left(byNode), left(byCore)
	near, seen := map[int]bool{}, map[int]int{}
	var list []CPU
	for _, c := range m.CPUs {
		near[c.Node] = near[c.Node] || got.Has(c.ID)
		if free.Has(c.ID) {
			list = append(list, c)
		}
	}
	rank := map[int]int{} // of a processor in its core
	for _, c := range list {
		rank[c.ID], seen[c.Core] = seen[c.Core], seen[c.Core]+1
	}
	away := func(c CPU) int {
		if near[c.Node] {
			return 0
		}
		return 1
	}
	per := m.ThreadsPerCore()
	split := func(c CPU) int { // of a core of which some are taken
		if cores[c.Core] < per {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(list, func(a, b CPU) int {
		place := cmp.Or(cmp.Compare(away(a), away(b)), cmp.Compare(sockets[a.Socket], sockets[b.Socket]), cmp.Compare(a.Socket, b.Socket),
			cmp.Compare(nodes[a.Node], nodes[b.Node]), cmp.Compare(a.Node, b.Node))
		if o.SpreadCores {
			return cmp.Or(place, cmp.Compare(rank[a.ID], rank[b.ID]), cmp.Compare(split(a), split(b)), cmp.Compare(a.ID, b.ID))
		}
		return cmp.Or(place, cmp.Compare(split(b), split(a)), cmp.Compare(a.Core, b.Core), cmp.Compare(a.ID, b.ID))
	})
	ids := make([]int, len(list))
	for i, c := range list {
		ids[i] = c.ID
	}
	return ids
}

// spread takes the same number of as few nodes as will do; nil if it cannot.
func (m Machine) spread(free CPUs, n int, o Options) CPUs {
	step := 1
	if o.FullCores {
		step = m.ThreadsPerCore()
	}
	has := make([]CPUs, len(m.Nodes))
	for i := range m.Nodes {
		has[i] = free.And(m.In(1 << i))
	}
	for size := 1; size <= len(m.Nodes); size++ {
		best, bestLeft := Mask(0), -1
		for nodes := Mask(1); nodes <= m.AllNodes(); nodes++ {
			if nodes.Count() != size {
				continue
			}
			share, least := n/size/step*step, MaxCPUs
			sum := 0
			for i := range has {
				if nodes.Has(i) {
					least, sum = min(least, len(has[i])), sum+len(has[i])
				}
			}
			// What does not divide evenly goes where there is more.
			if sum >= n && least >= share && least-share > bestLeft {
				best, bestLeft = nodes, least-share
			}
		}
		if best != 0 {
			return m.evenly(has, best, n, step, o)
		}
	}
	return nil
}

// evenly takes n processors of some nodes, step by step of that which gave the least.
func (m Machine) evenly(has []CPUs, nodes Mask, n, step int, o Options) (got CPUs) {
	give := make([]int, len(has))
	for left := n; left > 0; {
		to := -1
		for i := range has {
			if nodes.Has(i) && len(has[i])-give[i] >= min(step, left) && (to < 0 || give[i] < give[to]) {
				to = i
			}
		}
		if to < 0 {
			return nil
		}
		k := min(step, left)
		give[to], left = give[to]+k, left-k
	}
	for i := range has {
		got = got.Or(m.pack(has[i], give[i], o))
	}
	return got
}
