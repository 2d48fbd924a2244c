package device

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	plugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// Health tells, by container, how the devices are that a pod has (KEP-4680). A
// device whose plugin has not registered since the agent began is neither well nor
// not; one whose plugin has gone is not.
func (m *Manager) Health(uid string) map[string][]corev1.ResourceStatus {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string][]corev1.ResourceStatus{}
	for container, grants := range m.pods[uid] {
		for _, resource := range slices.Sorted(maps.Keys(grants)) {
			s := corev1.ResourceStatus{Name: corev1.ResourceName(resource)}
			for _, id := range slices.Sorted(slices.Values(grants[resource].IDs)) {
				s.Resources = append(s.Resources, corev1.ResourceHealth{ResourceID: corev1.ResourceID(id), Health: m.health(resource, id)})
			}
			out[container] = append(out[container], s)
		}
	}
	return out
}

// health is what a plugin said last. The lock is held.
func (m *Manager) health(resource, id string) corev1.ResourceHealthStatus {
	p := m.plugins[resource]
	if p == nil {
		return corev1.ResourceHealthStatusUnknown
	}
	switch d := p.devices[id]; {
	case d == nil, d.Health == plugin.Unhealthy: // a plugin that knows a device no more has lost it
		return corev1.ResourceHealthStatusUnhealthy
	case d.Health == plugin.Healthy:
		return corev1.ResourceHealthStatusHealthy
	}
	return corev1.ResourceHealthStatusUnknown
}
