// Package network connects pods: with a bridge, veth pairs, address leases,
// masquerade and host ports of its own, all by netlink in process, or with CNI
// plugins by libcni if a CNI configuration is there. It knows network
// namespaces by path and pods by ID, and nothing of containers.
//
// Leases are files below Config.StateDir tied to a pod ID; they are written
// before the kernel is changed and removed last, so that a crash leaves what
// Teardown or Reconcile can clean.
package network

import (
	"context"
	"log/slog"
	"net/netip"
)

// Config of a Network. Several instances on one host must differ in Name,
// StateDir and Subnet.
type Config struct {
	// Name makes bridge, nft table and chain names unique per instance.
	Name     string // e.g. "podstead0"; at most 11 bytes
	StateDir string // leases, CNI result cache
	RunDir   string
	Subnet   netip.Prefix // of the built-in network; zero: one that is free on this host is chosen and remembered
	// CNIConfDir is watched: a valid conflist in it takes the built-in network's
	// place for new pods. CNIBinDirs are searched for plugins.
	CNIConfDir string
	CNIBinDirs []string
	Log        *slog.Logger
}

// Network is the pod network of a node. Safe for concurrent use.
type Network struct{}

// New prepares the network (the bridge is made with the first pod).
func New(cfg Config) (*Network, error) { panic("not yet") }

// PortMapping is a port of the host that leads to one of the pod.
type PortMapping struct {
	Protocol      string     // "TCP", "UDP", "SCTP"
	HostIP        netip.Addr // zero: all addresses of the host
	HostPort      uint16
	ContainerPort uint16
}

// Pod is what Setup and Teardown need to know.
type Pod struct {
	ID           string // sandbox ID
	Namespace    string // Kubernetes namespace, for CNI_ARGS
	Name, UID    string
	Netns        string // path of the network namespace; "" at Teardown if it is gone
	Ports        []PortMapping
	Annotations  map[string]string // bandwidth annotations
	CgroupParent string
}

// Result tells what Setup did.
type Result struct {
	IPs []netip.Addr // first is the primary one
}

// Setup connects the pod: loopback up, interface eth0, address, route, ports.
// A second Setup of the same pod returns the first one's result. On an error
// nothing of it is left. A host port that is taken already is an error that
// names the pod which has it.
func (n *Network) Setup(ctx context.Context, pod Pod) (Result, error) { panic("not yet") }

// Teardown undoes Setup; it is repeatable and works when the namespace is gone.
func (n *Network) Teardown(ctx context.Context, pod Pod) error { panic("not yet") }

// Reconcile tears down every lease whose pod is not in live. Called at start.
func (n *Network) Reconcile(ctx context.Context, live []string) error { panic("not yet") }

// Ready is nil when pods can be connected, else the reason why not.
func (n *Network) Ready() error { panic("not yet") }

// Close stops watching. Pods stay connected. With no pods left, Destroy
// removes bridge, table and routes.
func (n *Network) Close() error                      { panic("not yet") }
func (n *Network) Destroy(ctx context.Context) error { panic("not yet") }
