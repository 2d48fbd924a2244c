package device

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	plugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"podstead/agent/internal/numa"
	"podstead/agent/internal/request"
)

// Hints say on which NUMA nodes of a machine there are devices for a container, or for
// the whole pod if it has no name: one list for each resource. Of devices that a pod
// has already only their own nodes will do.
func (m *Manager) Hints(machine numa.Machine, pod *corev1.Pod, container string) (out [][]numa.Hint) {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	amounts := needs(pod, container)
	for _, resource := range slices.Sorted(maps.Keys(amounts)) {
		p := m.plugins[resource]
		if p == nil {
			out = append(out, nil)
			continue
		}
		var all, free []numa.Mask
		for _, id := range slices.Sorted(maps.Keys(p.devices)) {
			if p.devices[id].Health == plugin.Healthy {
				all = append(all, machine.MaskOf(p.nodes(id)...))
			}
		}
		own := m.owned(pod, container, resource)
		if len(own) == 0 {
			own = m.free(resource, p)
		}
		for _, id := range own {
			free = append(free, machine.MaskOf(p.nodes(id)...))
		}
		out = append(out, machine.DeviceHints(amounts[resource], all, free))
	}
	return out
}

// needs is how many of each resource a container asks for, or a pod at once at most.
func needs(pod *corev1.Pod, container string) map[string]int {
	all, most := map[string]int{}, map[string]int{}
	list, passing := request.InTurn(pod)
	for _, c := range list {
		if container != "" && c.Name != container {
			continue
		}
		for resource, n := range wants(c) {
			if most[resource] = max(most[resource], all[resource]+n); !passing[c.Name] {
				all[resource] += n
			}
		}
	}
	return most
}

// owned are the devices that a container has already, or all of its pod. The lock is
// held.
func (m *Manager) owned(pod *corev1.Pod, container, resource string) (ids []string) {
	for name, grants := range m.pods[string(pod.UID)] {
		if container == "" || name == container {
			ids = append(ids, grants[resource].IDs...)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// nodes are those that a device says it is on, by ID.
func (p *endpoint) nodes(id string) (ids []int) {
	for _, n := range p.devices[id].GetTopology().GetNodes() {
		ids = append(ids, int(n.ID))
	}
	return ids
}

// nearest brings devices into the order in which they are to be taken: those near the
// nodes of the container first. Where it has to be near, others are left out, unless
// they do not say where they are. The lock is held.
func (m *Manager) nearest(pod *corev1.Pod, container, resource string, ids []string) []string {
	near := m.near(pod, container, resource, ids)
	if near == nil {
		return ids
	}
	far := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return slices.Contains(near, id) })
	if _, strict := m.Near(string(pod.UID), container); strict {
		far = slices.DeleteFunc(far, func(id string) bool { return len(m.plugins[resource].nodes(id)) > 0 })
	}
	return slices.Concat(near, far)
}

// near are the devices on the nodes of a container; nil if it has none. The lock is
// held.
func (m *Manager) near(pod *corev1.Pod, container, resource string, ids []string) []string {
	if m.Near == nil {
		return nil
	}
	nodes, _ := m.Near(string(pod.UID), container)
	if len(nodes) == 0 || m.plugins[resource] == nil {
		return nil
	}
	near := []string{}
	for _, id := range ids {
		if slices.ContainsFunc(m.plugins[resource].nodes(id), func(n int) bool { return slices.Contains(nodes, n) }) {
			near = append(near, id)
		}
	}
	return near
}
