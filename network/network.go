// Package network connects pods: with a bridge, veth pairs, address leases,
// masquerade and host ports of its own, all by netlink in process, or with CNI
// plugins by libcni if a CNI configuration is there. It knows network
// namespaces by path and pods by ID, and nothing of containers.
//
// Leases are files below Config.StateDir tied to a pod ID; they are written
// before the kernel is changed and removed last, so that a crash leaves what
// Teardown or Reconcile can clean. Pods stay connected while no process of ours
// runs. docs/network.md shows the way of a packet.
//
// The rooms: internal/ipam (pure: pools and choice of a subnet),
// internal/bridge (links), internal/nat (nftables), internal/shared (what the
// instances of one host must agree on), internal/cni (plugins).
package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"podstead/sys"
)

// Config of a Network. Several instances on one host must differ in Name,
// StateDir and Subnets.
type Config struct {
	// Name is that of the bridge and the nftables table, and so unique per
	// instance; a letter followed by at most 10 letters, digits, "-" or "_".
	Name     string
	StateDir string // leases, CNI result cache
	RunDir   string
	// Subnets of the built-in network, at most one of each address family. None:
	// an IPv4 one that is free on this host is chosen and remembered, and if the
	// host has IPv6, a unique local one of that.
	Subnets []netip.Prefix
	// CNIConfDir is looked at for each new pod: the first valid *.conflist, *.conf
	// or *.json in it takes the built-in network's place. Files of which none is
	// valid keep pods from being connected. CNIBinDirs are searched for plugins.
	CNIConfDir string
	CNIBinDirs []string
	// CNINetworks are names of further networks in CNIConfDir that each pod is
	// connected to, by eth1 and so on. They count only where plugins connect pods.
	CNINetworks []string
	// CNINoGC keeps plugins from being told to free what nobody has.
	CNINoGC bool
	// CNICacheDirs are libcni's caches of other runtimes on this host, which tell
	// what of a network they have. libcni's usual one if nil.
	CNICacheDirs []string
	// Slots is how many namespaces the built-in network keeps connected ahead of
	// time, from the first pod on; see Namespace.
	Slots int
	// HostDir is where the instances of a host agree on subnets and on IP
	// forwarding; it should be on a tmpfs, and the same for all of them.
	// "/run/podstead-network" if empty.
	HostDir string
	Log     *slog.Logger
}

// CNI is where configuration of CNI is, and its plugins; see the fields of Config.
type CNI struct {
	ConfDir  string
	BinDirs  []string
	Networks []string
}

// PortMapping is a port of the host that leads to one of the pod.
type PortMapping struct {
	Protocol      string     `json:"protocol"`         // "TCP", "UDP", "SCTP"; empty is TCP
	HostIP        netip.Addr `json:"hostIP,omitempty"` // zero or unspecified: all addresses of the host
	HostPort      uint16     `json:"hostPort"`         // 0: no host port
	ContainerPort uint16     `json:"containerPort"`
}

// Pod is what Setup and Teardown need to know. Teardown needs the ID only.
type Pod struct {
	ID           string // sandbox ID
	Namespace    string // Kubernetes namespace, for CNI_ARGS
	Name, UID    string
	Netns        string // path of the network namespace; "" at Teardown if it is gone
	Ports        []PortMapping
	Annotations  map[string]string // bandwidth annotations
	CgroupParent string            // for CNI plugins
	DNS          DNS               // for CNI plugins
}

// DNS is the pod's resolv.conf.
type DNS struct {
	Servers, Searches, Options []string
}

func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// Result tells what Setup did.
type Result struct {
	IPs []netip.Addr // first is the primary one
}

// Network is the pod network of a node. Safe for concurrent use.
type Network struct {
	log     *slog.Logger
	leases  *leases
	pods    keyedMutex // by pod ID: Setup and Teardown of one pod wait for each other
	builtin *builtin
	plugins *plugins
	slots   *slots

	// What nobody waits for runs under life, which ends with Close.
	life   context.Context
	end    context.CancelFunc
	worker sync.WaitGroup
}

const defaultHostDir = "/run/podstead-network"

var (
	validName = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_-]{0,10}$`)
	validID   = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)
)

// SetCNI changes where new pods' configuration is looked for, and plugins for all
// pods.
func (n *Network) SetCNI(c CNI) { n.plugins.set(c) }

// SetSlots changes how many namespaces are kept connected ahead of time.
func (n *Network) SetSlots(want int) error { return n.slots.setWant(want) }

// New reads the leases and changes nothing in the kernel: the bridge is made
// with the first pod. A lease that cannot be read is set aside and logged.
func New(cfg Config) (*Network, error) {
	if !validName.MatchString(cfg.Name) {
		return nil, fmt.Errorf("network name %q does not match %s", cfg.Name, validName)
	}
	if cfg.StateDir == "" {
		return nil, errors.New("network: StateDir is empty")
	}
	if cfg.HostDir == "" {
		cfg.HostDir = defaultHostDir
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	leases, err := openLeases(filepath.Join(cfg.StateDir, "leases"), cfg.Log)
	if err != nil {
		return nil, err
	}
	clusters, err := readClusterSubnets(cfg.StateDir)
	if err != nil {
		cfg.Log.Error("remembered pod CIDRs are unreadable", "error", err)
	}
	b, err := newBuiltin(cfg, leases, clusters)
	if err != nil {
		return nil, err
	}
	n := &Network{log: cfg.Log, leases: leases, builtin: b}
	n.life, n.end = context.WithCancel(context.Background())
	n.plugins = newPlugins(cfg, leases, b, n.later)
	n.plugins.subnets = clusters
	n.slots = newSlots(cfg.Slots, b, n.usesBuiltin, n.later)
	b.slots = n.slots
	return n, nil
}

// later runs f while others go on, and reports whether it does. f is told of
// Close by its context.
func (n *Network) later(f func(context.Context)) bool {
	if n.life.Err() != nil {
		return false
	}
	n.worker.Go(func() { f(n.life) })
	return true
}

// usesBuiltin tells whether new pods are connected by the built-in network.
func (n *Network) usesBuiltin() bool {
	lists, err := n.plugins.current()
	return err == nil && len(lists) == 0
}

// Namespace binds a network namespace that is connected already to path, where no
// file may be, and reports whether there was one; else the caller makes one. Setup
// of this pod with this path then has little left to do, and Teardown gives back
// what Setup never got.
func (n *Network) Namespace(podID, path string) (bool, error) {
	defer n.pods.lock(podID)()
	return n.slots.claim(podID, path)
}

// Setup connects the pod: loopback up, interface eth0, address, route, ports.
// A second Setup of the same pod returns the first one's result. On an error
// nothing of it is left. A host port that is taken already is an error that
// names the pod which has it.
func (n *Network) Setup(ctx context.Context, pod Pod) (Result, error) {
	if err := checkPod(pod); err != nil {
		return Result{}, err
	}
	defer n.slots.fill()
	defer n.pods.lock(pod.ID)()
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	l, err := n.connect(ctx, pod)
	if err != nil {
		return Result{}, fmt.Errorf("connect pod %s (%s): %w", pod, pod.ID, err)
	}
	return Result{IPs: slices.Clone(l.IPs)}, nil
}

// connect lets the built-in network or plugins connect a pod: those that
// connected it before, else those that are to connect new ones.
func (n *Network) connect(ctx context.Context, pod Pod) (*lease, error) {
	if n.slots.has(pod.ID, pod.Netns) {
		return n.builtin.setup(ctx, pod)
	}
	lists, err := n.plugins.current()
	if err != nil {
		return nil, err
	}
	old := n.leases.get(pod.ID)
	if old != nil && old.CNI == nil && n.builtin.holds(old, pod.Netns) {
		lists = nil
	}
	if old != nil && (old.CNI == nil) != (lists == nil) {
		if old.CNI != nil && n.plugins.connected(old, pod.Netns) {
			return old, nil
		}
		if err := n.teardown(ctx, old); err != nil {
			return nil, err
		}
	}
	if lists != nil {
		return n.plugins.setup(ctx, lists, pod)
	}
	return n.builtin.setup(ctx, pod)
}

func checkPod(pod Pod) error {
	if !validID.MatchString(pod.ID) {
		return fmt.Errorf("pod ID %q does not match %s", pod.ID, validID)
	}
	if pod.Netns == "" {
		return fmt.Errorf("pod %s (%s): no network namespace", pod, pod.ID)
	}
	if _, err := os.Stat(pod.Netns); err != nil {
		return fmt.Errorf("pod %s (%s): network namespace: %w", pod, pod.ID, err)
	}
	return nil
}

// Teardown undoes Setup; it is repeatable and works when the namespace is gone.
// The pod's interface ends with its namespace, but reaches nothing any more.
func (n *Network) Teardown(ctx context.Context, pod Pod) error {
	defer n.slots.fill()
	defer n.pods.lock(pod.ID)()
	if err := n.slots.giveBack(pod.ID); err != nil {
		return fmt.Errorf("disconnect pod %s: %w", pod.ID, err)
	}
	l := n.leases.get(pod.ID)
	if l == nil {
		return nil
	}
	if err := n.teardown(ctx, l); err != nil {
		return fmt.Errorf("disconnect pod %s/%s (%s): %w", l.Namespace, l.Name, l.PodID, err)
	}
	return nil
}

func (n *Network) teardown(ctx context.Context, l *lease) error {
	if l.CNI != nil {
		return n.plugins.teardown(ctx, l)
	}
	return n.builtin.teardown(ctx, l)
}

// SetPodCIDR is SetPodSubnets with the subnets as text, separated by commas; none
// changes nothing.
func (n *Network) SetPodCIDR(list string) error {
	var subnets []netip.Prefix
	for _, cidr := range strings.Split(list, ",") {
		if cidr = strings.TrimSpace(cidr); cidr == "" {
			continue
		}
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return err
		}
		subnets = append(subnets, p)
	}
	if len(subnets) == 0 {
		return nil
	}
	return n.SetPodSubnets(subnets)
}

// SetPodSubnets sets what UpdateRuntimeConfig brings: the node's part of the
// cluster's pod addresses, which is remembered, for the cluster says it once.
// CNI plugins get it as the capability ipRanges for new pods. The built-in
// network takes it if it is free to: Config.Subnets is not set and no pod is
// connected.
func (n *Network) SetPodSubnets(subnets []netip.Prefix) error {
	// Their addresses are of the former subnets.
	resume, err := n.slots.stop()
	defer resume()
	if err = errors.Join(err, n.builtin.setSubnets(subnets)); err != nil {
		return err
	}
	n.plugins.mu.Lock()
	n.plugins.subnets = slices.Clone(subnets)
	n.plugins.mu.Unlock()
	data, err := json.Marshal(subnetRecord{Subnets: subnets})
	if err != nil {
		return err
	}
	return writeJSON(clusterFile(n.builtin.cfg.StateDir), data)
}

func clusterFile(stateDir string) string { return filepath.Join(stateDir, "pod-cidrs.json") }

func readClusterSubnets(stateDir string) ([]netip.Prefix, error) {
	r, err := readSubnets(clusterFile(stateDir))
	return r.Subnets, err
}

// HasPlugins tells whether CNI plugins connect the next pod, or would if their
// configuration were valid.
func (n *Network) HasPlugins() bool {
	lists, err := n.plugins.current()
	return len(lists) > 0 || err != nil
}

// Reconcile tears down every lease whose pod is not in live, and brings the
// kernel back to what the others say. Called at start.
func (n *Network) Reconcile(ctx context.Context, live []string) error {
	resume, err := n.slots.stop()
	if err != nil {
		return err
	}
	defer func() { resume() }()
	stale := slices.DeleteFunc(n.leases.all(), func(l *lease) bool { return slices.Contains(live, l.PodID) })
	errs := make([]error, len(stale))
	var gone errgroup.Group
	gone.SetLimit(reconcileAtOnce)
	for i, l := range stale {
		n.log.Info("disconnect a pod that is gone", "pod", l.Namespace+"/"+l.Name, "sandbox", l.PodID)
		gone.Go(func() error { errs[i] = n.Teardown(ctx, Pod{ID: l.PodID}); return nil })
	}
	gone.Wait()
	errs = append(errs, n.builtin.reconcile(), n.plugins.reconcile(ctx))
	if len(n.builtin.live()) > 0 {
		resume = n.slots.resume
	}
	return errors.Join(errs...)
}

// reconcileAtOnce bounds the plugins that run at once when a node starts.
const reconcileAtOnce = 8

// Check tells what a pod's network lacks, by the word of CNI plugins (CHECK) if
// they made it. A pod that is not connected is an error.
func (n *Network) Check(ctx context.Context, podID string) error {
	l := n.leases.get(podID)
	switch {
	case l == nil:
		return fmt.Errorf("pod %s is not connected", podID)
	case l.CNI != nil:
		return n.plugins.check(ctx, l)
	case !n.builtin.holds(l, l.Netns):
		return fmt.Errorf("pod %s/%s (%s): its link %s or what belongs to it is gone", l.Namespace, l.Name, podID, l.Link)
	}
	return nil
}

// Ready is nil when pods can be connected, else the reason why not.
func (n *Network) Ready() error {
	lists, err := n.plugins.current()
	if err != nil {
		return err
	}
	if lists != nil {
		return n.plugins.status(n.life, lists)
	}
	return n.builtin.ready()
}

// Close frees what the process holds. Pods stay connected.
func (n *Network) Close() error {
	n.end()
	n.worker.Wait()
	_, err := n.slots.stop()
	return errors.Join(err, n.builtin.close())
}

// Idle tells whether no pod is connected.
func (n *Network) Idle() bool { return len(n.leases.all()) == 0 }

// Destroy removes bridge, table, routes and files, and restores what was
// changed on the host. It is an error if pods are still connected.
func (n *Network) Destroy(ctx context.Context) error {
	if all := n.leases.all(); len(all) > 0 {
		names := make([]string, len(all))
		for i, l := range all {
			names[i] = l.Namespace + "/" + l.Name
		}
		return fmt.Errorf("network still has pods: %s", strings.Join(names, ", "))
	}
	if _, err := n.slots.stop(); err != nil {
		return err
	}
	if err := errors.Join(n.builtin.destroy(), n.plugins.destroy()); err != nil {
		return err
	}
	return n.leases.destroy()
}

// bootID tells this run of the kernel from others.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// writeJSON replaces a file; leases need not survive a power cut, for the
// namespaces that they speak of do not either.
func writeJSON(path string, data []byte) error {
	return sys.WriteFileAtomic(path, data, 0o600, false)
}
