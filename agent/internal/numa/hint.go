package numa

import (
	"cmp"
	"math"
	"slices"
)

// Hint is one way in which something can be given: on these nodes (0: on any), and
// whether that is as few of them as would do on an empty machine.
type Hint struct {
	Nodes     Mask
	Preferred bool
}

// Anywhere are the hints of who does not mind.
func Anywhere() []Hint { return []Hint{{Preferred: true}} }

// Policy of the topology manager.
type Policy string

// Policies: what counts is said beside Merge.
const (
	None       Policy = "none"
	BestEffort Policy = "best-effort"
	Restricted Policy = "restricted"
	SingleNode Policy = "single-numa-node"
)

// Topology is how hints are merged.
type Topology struct {
	Policy Policy
	// Closest: of as many nodes those that are closer to each other
	// (prefer-closest-numa-nodes).
	Closest bool
}

// CPUHints are the nodes on which n processors are free.
func (m Machine) CPUHints(n int, free CPUs, o Options) []Hint {
	if n == 0 {
		return Anywhere()
	}
	hints := m.hints(func(nodes Mask) (all, now bool) {
		in := m.In(nodes)
		return len(in) >= n, len(in.And(free)) >= n
	})
	if o.AlignBySocket {
		least := math.MaxInt
		for _, h := range hints {
			least = min(least, m.socketsOf(h.Nodes))
		}
		for i := range hints {
			hints[i].Preferred = m.socketsOf(hints[i].Nodes) == least
		}
	}
	return hints
}

func (m Machine) socketsOf(nodes Mask) int { return len(m.groups(bySocket, m.In(nodes))) }

// Aligned are the processors that are as good as those of some nodes.
func (m Machine) Aligned(nodes Mask, o Options) CPUs {
	in := m.In(nodes)
	if !o.AlignBySocket {
		return in
	}
	sockets := map[int]bool{}
	for _, c := range m.CPUs {
		sockets[c.Socket] = sockets[c.Socket] || in.Has(c.ID)
	}
	return m.where(func(c CPU) bool { return sockets[c.Socket] })
}

// DeviceHints are the nodes on which n devices are free. Each device is on some
// nodes; 0: it does not say. All are all healthy ones, taken or not.
func (m Machine) DeviceHints(n int, all, free []Mask) []Hint {
	if n == 0 || !slices.ContainsFunc(all, func(at Mask) bool { return at != 0 }) {
		return Anywhere()
	}
	near := func(devices []Mask, nodes Mask) (k int) {
		for _, at := range devices {
			if at&nodes != 0 || at == 0 {
				k++
			}
		}
		return k
	}
	return m.hints(func(nodes Mask) (bool, bool) { return near(all, nodes) >= n, near(free, nodes) >= n })
}

// hints are the nodes on which something can be given now; those are preferred of
// which there are as few as would do if all were free.
func (m Machine) hints(fits func(nodes Mask) (all, now bool)) (out []Hint) {
	least := math.MaxInt
	for nodes := Mask(1); nodes <= m.AllNodes(); nodes++ {
		all, now := fits(nodes)
		if all {
			least = min(least, nodes.Count())
		}
		if now {
			out = append(out, Hint{Nodes: nodes})
		}
	}
	for i := range out {
		out[i].Preferred = out[i].Nodes.Count() == least
	}
	return out
}

// Merge finds nodes that do for all needs, each of which says by its hints what would
// do for it alone (none: nothing). It is admitted
//   - by none and best-effort whatever is found,
//   - by restricted if all needs prefer it,
//   - by single-numa-node if all needs are met by one and the same node.
func (t Topology) Merge(m Machine, needs [][]Hint) (best Hint, admitted bool) {
	needs = slices.Clone(needs)
	for i, hints := range needs {
		if t.Policy == SingleNode {
			hints = slices.DeleteFunc(slices.Clone(hints), func(h Hint) bool { return !h.Preferred || h.Nodes.Count() > 1 })
		}
		if needs[i] = hints; len(hints) == 0 {
			needs[i] = []Hint{{}}
		}
	}
	best = Hint{Nodes: m.AllNodes()}
	found := false
	ideal := ideal(m, needs)
	permute(needs, func(one []Hint) {
		h := merged(m, one)
		if h.Nodes == 0 || found && !t.better(m, h, best, ideal) {
			return
		}
		best, found = h, true
	})
	return best, best.Preferred || t.Policy == BestEffort || t.Policy == None
}

// ideal is how many nodes the need that needs the most takes at least.
func ideal(m Machine, needs [][]Hint) (most int) {
	for _, hints := range needs {
		least := len(m.Nodes)
		for _, h := range hints {
			if h.Nodes != 0 {
				least = min(least, h.Nodes.Count())
			} else {
				least = min(least, 1)
			}
		}
		most = max(most, least)
	}
	return most
}

// merged are the nodes that all hints name, preferred if they name the same ones and
// prefer them.
func merged(m Machine, hints []Hint) Hint {
	out := Hint{Nodes: m.AllNodes(), Preferred: true}
	first := Mask(0)
	for _, h := range hints {
		if h.Nodes != 0 {
			if first == 0 {
				first = h.Nodes
			}
			out.Preferred = out.Preferred && h.Nodes == first
			out.Nodes &= h.Nodes
		}
		out.Preferred = out.Preferred && h.Preferred
	}
	return out
}

// better compares hints: preferred ones first, then of fewer nodes; those that nobody
// prefers should not be of fewer than are needed.
func (t Topology) better(m Machine, h, than Hint, ideal int) bool {
	if h.Preferred != than.Preferred {
		return h.Preferred
	}
	a, b := h.Nodes.Count(), than.Nodes.Count()
	if !h.Preferred {
		few := func(n int) int { // too few are worse than too many
			if n < ideal {
				return 1
			}
			return 0
		}
		if few(a) != few(b) {
			return few(a) < few(b)
		}
		if few(a) == 1 && a != b {
			return a > b
		}
	}
	if a != b {
		return a < b
	}
	if t.Closest {
		if c := cmp.Compare(m.distance(h.Nodes), m.distance(than.Nodes)); c != 0 {
			return c < 0
		}
	}
	return h.Nodes.narrower(than.Nodes)
}

// distance is the mean between nodes.
func (m Machine) distance(nodes Mask) float64 {
	sum, n := 0, 0
	for i := range m.Nodes {
		for j := range m.Nodes[i].Distances {
			if nodes.Has(i) && nodes.Has(j) {
				sum, n = sum+m.Nodes[i].Distances[j], n+1
			}
		}
	}
	return float64(sum) / float64(max(n, 1))
}

// permute calls f with one hint of each need, in all combinations.
func permute(needs [][]Hint, f func([]Hint)) {
	one := make([]Hint, len(needs))
	var next func(i int)
	next = func(i int) {
		if i == len(needs) {
			f(one)
			return
		}
		for _, h := range needs[i] {
			one[i] = h
			next(i + 1)
		}
	}
	next(0)
}
