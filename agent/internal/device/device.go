// Package device gives containers the devices that kubelet device plugins offer
// (deviceplugin/v1beta1) under the names of extended resources, and tells
// monitoring agents who has which (podresources/v1).
//
// A pod is given what all its containers ask for at once, or nothing; what it was
// given stays its own, over restarts of its containers and of the agent, until
// the pod is over.
package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	plugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"podstead/agent/internal/request"
	"podstead/sys"
)

// Manager knows plugins and devices. The methods of a nil one say that there are
// none.
type Manager struct {
	file    string // allocations
	log     *slog.Logger
	changed func()
	// Near, if not nil, tells near which NUMA nodes a container's devices are to be, by
	// ID; none: anywhere. Strict: and nowhere else.
	Near func(uid, container string) (nodes []int, strict bool)

	alloc sync.Mutex // one pod is given devices at a time

	mu      sync.Mutex
	plugins map[string]*endpoint // by resource
	pods    map[string]Pod       // by UID
}

// Pod is what a pod has: by container, by resource.
type Pod map[string]map[string]Grant

// Grant is what a container has of one resource, and what the plugin said is to
// be done for it.
type Grant struct {
	IDs      []string
	Response *plugin.ContainerAllocateResponse
}

// New reads who has what from a file. changed is called, from other goroutines,
// when there are other devices than before.
func New(file string, changed func(), log *slog.Logger) (*Manager, error) {
	m := &Manager{file: file, log: log, changed: changed, plugins: map[string]*endpoint{}, pods: map[string]Pod{}}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &m.pods)
	}
	if err != nil {
		return nil, fmt.Errorf("devices of pods: %s: %w", file, err)
	}
	return m, nil
}

// IsExtended tells whether a resource is one that plugins offer: it has a domain,
// and that is not Kubernetes' own.
func IsExtended(name corev1.ResourceName) bool {
	domain, _, ok := strings.Cut(string(name), "/")
	return ok && domain != "kubernetes.io" && !strings.HasSuffix(domain, ".kubernetes.io") && !strings.HasPrefix(string(name), "requests.")
}

// wants is how many of each resource a container asks for.
func wants(c *corev1.Container) map[string]int {
	out := map[string]int{}
	for name, q := range c.Resources.Limits {
		if n := q.Value(); IsExtended(name) && n > 0 {
			out[string(name)] = int(min(n, 1<<20))
		}
	}
	return out
}

// Lacks tells what a pod that has no devices yet would have to wait for, "" for
// nothing.
func (m *Manager) Lacks(pod *corev1.Pod) string {
	list, _ := request.InTurn(pod)
	asks := slices.ContainsFunc(list, func(c *corev1.Container) bool { return len(wants(c)) > 0 })
	if !asks {
		return ""
	}
	if m == nil {
		return "No device plugins are served here, see --root-dir"
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, has := m.pods[string(pod.UID)]; has {
		return ""
	}
	_, err := m.choose(pod)
	if err != nil {
		return err.Error()
	}
	return ""
}

// choose finds devices for a whole pod: by container, by resource. It goes by
// name; a plugin's preference comes later. The lock is held.
func (m *Manager) choose(pod *corev1.Pod) (map[string]map[string][]string, error) {
	free := map[string][]string{}
	for resource, p := range m.plugins {
		free[resource] = m.free(resource, p)
	}
	list, passing := request.InTurn(pod)
	out := map[string]map[string][]string{}
	reuse := map[string][]string{}
	for _, c := range list {
		for resource, n := range wants(c) {
			have := m.nearest(pod, c.Name, resource, slices.Concat(reuse[resource], free[resource]))
			if len(have) < n {
				return nil, fmt.Errorf("Container %s asks for %d of %s, %d are free", c.Name, n, resource, len(have))
			}
			got := have[:n]
			isTaken := func(id string) bool { return slices.Contains(got, id) }
			free[resource] = slices.DeleteFunc(free[resource], isTaken)
			reuse[resource] = slices.DeleteFunc(reuse[resource], isTaken)
			if passing[c.Name] {
				reuse[resource] = append(reuse[resource], got...)
			}
			if out[c.Name] == nil {
				out[c.Name] = map[string][]string{}
			}
			out[c.Name][resource] = got
		}
	}
	return out, nil
}

// free are the healthy devices that no pod has. The lock is held.
func (m *Manager) free(resource string, p *endpoint) []string {
	taken := map[string]bool{}
	for _, pod := range m.pods {
		for _, grants := range pod {
			for _, id := range grants[resource].IDs {
				taken[id] = true
			}
		}
	}
	var out []string
	for _, id := range slices.Sorted(maps.Keys(p.devices)) {
		if p.devices[id].Health == plugin.Healthy && !taken[id] {
			out = append(out, id)
		}
	}
	return out
}

// Container returns what a container of a pod has, by resource; the first call
// for a pod gives all its containers theirs.
func (m *Manager) Container(ctx context.Context, pod *corev1.Pod, name string) (map[string]Grant, error) {
	list, _ := request.InTurn(pod)
	if !slices.ContainsFunc(list, func(c *corev1.Container) bool { return len(wants(c)) > 0 }) {
		return nil, nil
	}
	if lack := m.Lacks(pod); lack != "" {
		return nil, errors.New(lack)
	}
	m.alloc.Lock()
	defer m.alloc.Unlock()
	m.mu.Lock()
	given, has := m.pods[string(pod.UID)]
	m.mu.Unlock()
	if !has {
		var err error
		if given, err = m.allocate(ctx, pod); err != nil {
			return nil, err
		}
	}
	return given[name], m.preStart(ctx, given[name])
}

// allocate asks the plugins, for the whole pod.
func (m *Manager) allocate(ctx context.Context, pod *corev1.Pod) (Pod, error) {
	m.mu.Lock()
	chosen, err := m.choose(pod)
	plugins := maps.Clone(m.plugins)
	m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	given := Pod{}
	list, passing := request.InTurn(pod)
	for _, c := range list {
		for resource, ids := range chosen[c.Name] {
			p := plugins[resource]
			if p.options.GetGetPreferredAllocationAvailable() && !passing[c.Name] && !shared(chosen, resource, c.Name) {
				if ids, err = m.prefer(ctx, p, pod, c.Name, ids, others(chosen, resource, c.Name)); err != nil {
					return nil, err
				}
				chosen[c.Name][resource] = ids
			}
			grant, err := p.allocate(ctx, ids)
			if err != nil {
				return nil, err
			}
			if given[c.Name] == nil {
				given[c.Name] = map[string]Grant{}
			}
			given[c.Name][resource] = grant
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pods[string(pod.UID)] = given
	if err := m.save(); err != nil {
		delete(m.pods, string(pod.UID))
		return nil, err
	}
	return given, nil
}

// shared tells whether a container's devices are another one's of the pod, too.
func shared(chosen map[string]map[string][]string, resource, name string) bool {
	mine := chosen[name][resource]
	for other, by := range chosen {
		if other != name && slices.ContainsFunc(by[resource], func(id string) bool { return slices.Contains(mine, id) }) {
			return true
		}
	}
	return false
}

// others are the devices that other containers of the pod are to have.
func others(chosen map[string]map[string][]string, resource, name string) map[string]bool {
	out := map[string]bool{}
	for other, by := range chosen {
		for _, id := range by[resource] {
			out[id] = out[id] || other != name
		}
	}
	return out
}

// prefer lets a plugin choose among what is free. What it says counts only if it
// is as many, and free.
func (m *Manager) prefer(ctx context.Context, p *endpoint, pod *corev1.Pod, container string, ids []string, others map[string]bool) ([]string, error) {
	m.mu.Lock()
	free := slices.DeleteFunc(m.free(p.resource, p), func(id string) bool { return others[id] })
	if near := m.near(pod, container, p.resource, free); len(near) >= len(ids) {
		free = near
	}
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := p.client.GetPreferredAllocation(ctx, &plugin.PreferredAllocationRequest{ContainerRequests: []*plugin.ContainerPreferredAllocationRequest{{
		AvailableDeviceIDs: free, AllocationSize: int32(len(ids))}}})
	if err != nil {
		return nil, fmt.Errorf("device plugin of %s: GetPreferredAllocation: %w", p.resource, err)
	}
	if len(resp.ContainerResponses) != 1 {
		return ids, nil
	}
	better := slices.Compact(slices.Sorted(slices.Values(resp.ContainerResponses[0].DeviceIDs)))
	for _, id := range better {
		if !slices.Contains(free, id) {
			return ids, nil
		}
	}
	if len(better) != len(ids) {
		return ids, nil
	}
	return better, nil
}

// preStart tells the plugins that want it that a container is about to start.
func (m *Manager) preStart(ctx context.Context, grants map[string]Grant) error {
	for resource, g := range grants {
		m.mu.Lock()
		p := m.plugins[resource]
		m.mu.Unlock()
		if p == nil || !p.options.GetPreStartRequired() {
			continue
		}
		if err := p.preStart(ctx, g.IDs); err != nil {
			return err
		}
	}
	return nil
}

// Release frees what a pod has.
func (m *Manager) Release(uid string) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.pods[uid]; !ok {
		return
	}
	delete(m.pods, uid)
	if err := m.save(); err != nil {
		m.log.Error("devices of a pod that is over are kept for it after a restart", "uid", uid, "error", err)
	}
	go m.changed()
}

// Keep frees what all other pods have.
func (m *Manager) Keep(uids map[string]bool) {
	if m == nil {
		return
	}
	m.mu.Lock()
	var gone []string
	for uid := range m.pods {
		if !uids[uid] {
			gone = append(gone, uid)
		}
	}
	m.mu.Unlock()
	for _, uid := range gone {
		m.Release(uid)
	}
}

// save writes who has what. The lock is held.
func (m *Manager) save() error {
	data, err := json.Marshal(m.pods)
	if err != nil {
		return err
	}
	return sys.WriteFileAtomic(m.file, data, 0o600, true)
}

// Capacity is how many devices there are of each resource, and how many of them
// can be used.
func (m *Manager) Capacity() (capacity, allocatable map[string]int) {
	capacity, allocatable = map[string]int{}, map[string]int{}
	if m == nil {
		return capacity, allocatable
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for resource, p := range m.plugins {
		capacity[resource] = len(p.devices)
		for _, d := range p.devices {
			if d.Health == plugin.Healthy {
				allocatable[resource]++
			}
		}
	}
	return capacity, allocatable
}
