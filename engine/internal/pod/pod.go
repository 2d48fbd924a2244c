// Package pod says of a pod sandbox what every engine says of one: its status to
// clients, its place in lists, and what the network is to know. It is called by
// the engine and by engine/docker, and keeps nothing.
package pod

import (
	"cmp"
	"maps"
	"net/netip"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/network"
)

// Facts are what an engine knows of a sandbox.
type Facts struct {
	ID        string
	Config    *runtimeapi.PodSandboxConfig
	Handler   string
	CreatedAt int64 // Unix nanoseconds
	Ready     bool
	IPs       []string // the primary one first; none on the host's network
}

// Status is the sandbox's, and shares nothing with the facts.
func Status(f Facts) *runtimeapi.PodSandboxStatus {
	o := f.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	st := &runtimeapi.PodSandboxStatus{
		Id: f.ID, Metadata: proto.CloneOf(f.Config.GetMetadata()), State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY,
		CreatedAt: f.CreatedAt, RuntimeHandler: f.Handler,
		Labels: maps.Clone(f.Config.GetLabels()), Annotations: maps.Clone(f.Config.GetAnnotations()),
		Network: &runtimeapi.PodSandboxNetworkStatus{},
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: &runtimeapi.NamespaceOption{
			Network: o.GetNetwork(), Pid: o.GetPid(), Ipc: o.GetIpc(),
			TargetId: o.GetTargetId(), UsernsOptions: proto.CloneOf(o.GetUsernsOptions()),
		}}},
	}
	if f.Ready {
		st.State = runtimeapi.PodSandboxState_SANDBOX_READY
	}
	for i, ip := range f.IPs {
		if i == 0 {
			st.Network.Ip = ip
			continue
		}
		st.Network.AdditionalIps = append(st.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
	}
	return st
}

// Item is a sandbox's place in a list, made of its status.
func Item(st *runtimeapi.PodSandboxStatus) *runtimeapi.PodSandbox {
	return &runtimeapi.PodSandbox{
		Id: st.Id, Metadata: st.Metadata, State: st.State, CreatedAt: st.CreatedAt,
		Labels: st.Labels, Annotations: st.Annotations, RuntimeHandler: st.RuntimeHandler,
	}
}

// NewestFirst orders lists, by time and then by ID.
func NewestFirst(a, b int64, idA, idB string) int {
	return cmp.Or(cmp.Compare(b, a), cmp.Compare(idA, idB))
}

// Selects tells whether labels have all that a selector asks for.
func Selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Network describes a sandbox to package network.
func Network(id, netns, cgroupParent string, c *runtimeapi.PodSandboxConfig) network.Pod {
	m := c.GetMetadata()
	out := network.Pod{
		ID: id, Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUid(),
		Netns: netns, Annotations: c.GetAnnotations(), CgroupParent: cgroupParent,
	}
	if d := c.GetDnsConfig(); d != nil {
		out.DNS = network.DNS{Servers: d.Servers, Searches: d.Searches, Options: d.Options}
	}
	for _, p := range c.GetPortMappings() {
		if p.HostPort == 0 {
			continue
		}
		ip, _ := netip.ParseAddr(p.HostIp) // checked by cri.Validate; empty is all addresses
		out.Ports = append(out.Ports, network.PortMapping{
			Protocol: p.Protocol.String(), HostIP: ip,
			HostPort: uint16(p.HostPort), ContainerPort: uint16(p.ContainerPort),
		})
	}
	return out
}
