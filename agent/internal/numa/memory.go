package numa

import (
	"fmt"
	"maps"
	"slices"
)

// Memory is how much of each resource ("memory", "hugepages-2Mi") the nodes have for
// containers: of what Machine says, without what is reserved.
type Memory struct {
	machine Machine
	has     []map[string]uint64 // by node
}

// Block is memory of some nodes together that a container has for itself. Nodes that
// are used together are not used in any other company.
type Block struct {
	Nodes  Mask
	Amount map[string]uint64
}

// NewMemory takes away what is reserved, by node.
func NewMemory(m Machine, reserved []map[string]uint64) (Memory, error) {
	out := Memory{machine: m}
	for i, n := range m.Nodes {
		has := maps.Clone(n.Memory)
		if i < len(reserved) {
			for _, name := range slices.Sorted(maps.Keys(reserved[i])) {
				if reserved[i][name] > has[name] {
					return out, fmt.Errorf("node %d has %d of %s, less than %d that are reserved", n.ID, has[name], name, reserved[i][name])
				}
				has[name] -= reserved[i][name]
			}
		}
		out.has = append(out.has, has)
	}
	return out, nil
}

// Has is what a node has for containers.
func (m Memory) Has(node int) map[string]uint64 { return m.has[node] }

// Hints are the nodes on which all of an amount is free beside others' blocks.
func (m Memory) Hints(want map[string]uint64, others []Block) []Hint {
	if len(want) == 0 {
		return Anywhere()
	}
	return m.machine.hints(func(nodes Mask) (all, now bool) {
		return m.fits(nodes, want, nil), m.fits(nodes, want, others)
	})
}

func (m Memory) fits(nodes Mask, want map[string]uint64, others []Block) bool {
	free := map[string]uint64{}
	for i := range m.has {
		if nodes.Has(i) {
			for name, n := range m.has[i] {
				free[name] += n
			}
		}
	}
	for _, b := range others {
		switch {
		case b.Nodes == nodes:
			for name, n := range b.Amount {
				free[name] -= min(n, free[name])
			}
		case b.Nodes&nodes != 0:
			return false
		}
	}
	for name, n := range want {
		if free[name] < n {
			return false
		}
	}
	return true
}

// Take chooses nodes for an amount: those that were agreed on, if they do, else more
// that have them among them, else the best (near 0: no matter which).
func (m Memory) Take(want map[string]uint64, near Mask, others []Block) (Mask, error) {
	best := Hint{}
	for _, h := range m.Hints(want, others) {
		if h.Nodes&near != near && near != m.machine.AllNodes() {
			continue
		}
		if best.Nodes == 0 || h.Nodes.narrower(best.Nodes) {
			best = h
		}
	}
	if best.Nodes == 0 {
		return 0, fmt.Errorf("[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available")
	}
	return best.Nodes, nil
}
