package agent

import (
	"maps"
	"slices"

	api "k8s.io/kubelet/pkg/apis/podresources/v1"

	"podstead/agent/internal/numa"
)

// What PodResources tells of processors and memory (device.Pinned).

// CPUIDs are the processors that a container has for itself.
func (p *pins) CPUIDs(uid, container string) []int64 {
	if p == nil {
		return nil
	}
	return ids(p.Of(uid, container).CPUs)
}

// AllocatableCPUIDs are those that containers may have.
func (p *pins) AllocatableCPUIDs() []int64 {
	if p == nil {
		return nil
	}
	return ids(p.Allocatable())
}

// Memory is what a container has for itself.
func (p *pins) Memory(uid, container string) []*api.ContainerMemory {
	if p == nil {
		return nil
	}
	g := p.Of(uid, container)
	return memoryOf(g.Memory, g.Nodes)
}

// AllocatableMemory is what containers may have, node by node.
func (p *pins) AllocatableMemory() (out []*api.ContainerMemory) {
	if p == nil {
		return nil
	}
	all := p.Book.Memory()
	for _, id := range slices.Sorted(maps.Keys(all)) {
		out = append(out, memoryOf(all[id], numa.CPUs{id})...)
	}
	return out
}

func memoryOf(amount map[string]uint64, nodes numa.CPUs) (out []*api.ContainerMemory) {
	for _, name := range slices.Sorted(maps.Keys(amount)) {
		m := &api.ContainerMemory{MemoryType: name, Size: amount[name], Topology: &api.TopologyInfo{}}
		for _, id := range nodes {
			m.Topology.Nodes = append(m.Topology.Nodes, &api.NUMANode{ID: int64(id)})
		}
		out = append(out, m)
	}
	return out
}

func ids(cpus numa.CPUs) (out []int64) {
	for _, id := range cpus {
		out = append(out, int64(id))
	}
	return out
}
