package device

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	plugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	api "k8s.io/kubelet/pkg/apis/podresources/v1"

	"podstead/agent/internal/request"
)

// Pinned tells what containers have of processors and memory, in a form of
// PodResources.
type Pinned interface {
	CPUIDs(uid, container string) []int64
	AllocatableCPUIDs() []int64
	Memory(uid, container string) []*api.ContainerMemory
	AllocatableMemory() []*api.ContainerMemory
}

// Serve serves the PodResources API (podresources/v1, KEP-2043) on kubelet.sock
// in a directory until ctx ends.
func (m *Manager) Serve(ctx context.Context, dir string, pods func() []*corev1.Pod, pinned Pinned) error {
	l, err := listen(filepath.Join(dir, "kubelet.sock"))
	if err != nil {
		return fmt.Errorf("PodResources API: %w", err)
	}
	srv := grpc.NewServer()
	api.RegisterPodResourcesListerServer(srv, lister{manager: m, pods: pods, pinned: pinned})
	stop := context.AfterFunc(ctx, srv.Stop)
	defer stop()
	err = srv.Serve(l)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// lister answers who has what.
type lister struct {
	api.UnimplementedPodResourcesListerServer
	manager *Manager
	pods    func() []*corev1.Pod
	pinned  Pinned
}

func (l lister) List(context.Context, *api.ListPodResourcesRequest) (*api.ListPodResourcesResponse, error) {
	resp := &api.ListPodResourcesResponse{}
	for _, p := range l.pods() {
		if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			resp.PodResources = append(resp.PodResources, l.of(p))
		}
	}
	return resp, nil
}

func (l lister) Get(_ context.Context, r *api.GetPodResourcesRequest) (*api.GetPodResourcesResponse, error) {
	for _, p := range l.pods() {
		if p.Namespace == r.PodNamespace && p.Name == r.PodName {
			return &api.GetPodResourcesResponse{PodResources: l.of(p)}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "pod %s in namespace %s not found", r.PodName, r.PodNamespace)
}

func (l lister) GetAllocatableResources(context.Context, *api.AllocatableResourcesRequest) (*api.AllocatableResourcesResponse, error) {
	m := l.manager
	m.mu.Lock()
	defer m.mu.Unlock()
	resp := &api.AllocatableResourcesResponse{CpuIds: l.pinned.AllocatableCPUIDs(), Memory: l.pinned.AllocatableMemory()}
	for _, resource := range slices.Sorted(maps.Keys(m.plugins)) {
		var ids []string
		for _, id := range slices.Sorted(maps.Keys(m.plugins[resource].devices)) {
			if m.plugins[resource].devices[id].Health == plugin.Healthy {
				ids = append(ids, id)
			}
		}
		resp.Devices = append(resp.Devices, m.describe(resource, ids)...)
	}
	return resp, nil
}

// of is what a pod has, with all its containers.
func (l lister) of(pod *corev1.Pod) *api.PodResources {
	m := l.manager
	m.mu.Lock()
	defer m.mu.Unlock()
	out := &api.PodResources{Name: pod.Name, Namespace: pod.Namespace}
	list, passing := request.InTurn(pod)
	for _, c := range list {
		if passing[c.Name] {
			continue // it is over, or will be
		}
		one := &api.ContainerResources{Name: c.Name, CpuIds: l.pinned.CPUIDs(string(pod.UID), c.Name), Memory: l.pinned.Memory(string(pod.UID), c.Name)}
		grants := m.pods[string(pod.UID)][c.Name]
		for _, resource := range slices.Sorted(maps.Keys(grants)) {
			one.Devices = append(one.Devices, m.describe(resource, grants[resource].IDs)...)
		}
		out.Containers = append(out.Containers, one)
	}
	return out
}

// describe lists devices with where they are: one entry for each that tells, one
// for the others. The lock is held.
func (m *Manager) describe(resource string, ids []string) (out []*api.ContainerDevices) {
	var rest []string
	for _, id := range ids {
		var at *plugin.TopologyInfo
		if p := m.plugins[resource]; p != nil {
			at = p.devices[id].GetTopology()
		}
		if at == nil {
			rest = append(rest, id)
			continue
		}
		d := &api.ContainerDevices{ResourceName: resource, DeviceIds: []string{id}, Topology: &api.TopologyInfo{}}
		for _, n := range at.Nodes {
			d.Topology.Nodes = append(d.Topology.Nodes, &api.NUMANode{ID: n.ID})
		}
		out = append(out, d)
	}
	if len(rest) > 0 {
		out = append(out, &api.ContainerDevices{ResourceName: resource, DeviceIds: rest})
	}
	return out
}
