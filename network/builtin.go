package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"podstead/network/internal/bridge"
	"podstead/network/internal/ipam"
	"podstead/network/internal/nat"
	"podstead/network/internal/shared"
	"podstead/sys"
)

// builtin is the network of our own.
type builtin struct {
	cfg    Config
	log    *slog.Logger
	leases *leases
	bootID string
	host   *shared.Host
	slots  *slots

	// hostMu is held while the host's side is looked at or put in order.
	hostMu    sync.Mutex
	joined    bool // the subnet is registered on the host
	enrolled  bool // the instance is, without a subnet
	tableMade bool // the table, if it is there, is of this subnet and version
	hostErr   error
	clusters  []netip.Prefix // pod CIDRs of the node, if the cluster told

	// tableMu is held for reading between the removal of a lease's ports from
	// the table and that of the lease, so that no table made anew has them.
	tableMu sync.RWMutex

	// mu guards who has what.
	mu     sync.Mutex
	setups int // under way
	pool   *ipam.Pool
	ports  portOwners

	// What depends on the subnets. It changes under hostMu, and only while there
	// is no lease and no Setup is past prepare: others may read it freely.
	subnets []netip.Prefix // one of a family; none until chosen
	former  []netip.Prefix // of pods that were connected before these were set
	unused  []netip.Prefix // once former, the bridge may still have them
	bridge  *bridge.Bridge
	table   *nat.Table
}

func newBuiltin(cfg Config, all *leases, clusters []netip.Prefix) (*builtin, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	host, err := shared.Open(cfg.HostDir)
	if err != nil {
		return nil, err
	}
	b := &builtin{cfg: cfg, log: cfg.Log, leases: all, bootID: boot, host: host, ports: portOwners{}}
	b.clusters = clusters
	remembered, err := b.rememberedSubnets()
	if err != nil {
		return nil, err
	}
	set := b.setSubnetsOrNone()
	if len(set) > 0 && !slices.Equal(set, remembered.Subnets) {
		if err := ipam.Check(set); err != nil {
			return nil, err
		}
		remembered = b.change(remembered, set)
	}
	if len(remembered.Subnets) > 0 {
		for _, s := range remembered.Former {
			if slices.ContainsFunc(b.own(), func(l *lease) bool { return slices.ContainsFunc(l.IPs, s.Contains) }) {
				b.former = append(b.former, s)
			} else {
				b.unused = append(b.unused, s)
			}
		}
		if err := b.use(remembered.Subnets); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// change goes over to subnets that are set. Pods that are connected keep their
// addresses in the former ones. Where that cannot be the former ones stay.
func (b *builtin) change(r subnetRecord, set []netip.Prefix) subnetRecord {
	n := len(b.own())
	log := b.log.With("subnet", ipam.Join(set), "former", ipam.Join(r.Subnets), "pods", n)
	switch {
	case n == 0 || len(r.Subnets) == 0:
		return subnetRecord{Subnets: set}
	case len(b.cfg.Subnets) == 0:
		return r // the cluster's: see setSubnets
	}
	former := slices.DeleteFunc(slices.Concat(r.Subnets, r.Former), func(s netip.Prefix) bool { return slices.Contains(set, s) })
	for _, s := range set {
		if slices.ContainsFunc(former, s.Overlaps) {
			log.Error("pod subnet has no effect until the pods that are connected are gone: it overlaps theirs")
			return r
		}
	}
	log.Warn("pod subnet is another one; pods that are connected keep their addresses")
	return subnetRecord{Subnets: set, Former: former}
}

// all are the subnets that pods have addresses of.
func (b *builtin) all() []netip.Prefix { return slices.Concat(b.subnets, b.former) }

// pooled are those of a pod's addresses that the pool gives out: all but those of
// former subnets.
func (b *builtin) pooled(ips []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(ips), func(a netip.Addr) bool {
		return slices.ContainsFunc(b.former, func(s netip.Prefix) bool { return s.Contains(a) })
	})
}

// setSubnetsOrNone returns the subnets that somebody has set: our configuration,
// or the cluster's.
func (b *builtin) setSubnetsOrNone() []netip.Prefix {
	if len(b.cfg.Subnets) == 0 {
		return masked(b.clusters)
	}
	return masked(b.cfg.Subnets)
}

func masked(subnets []netip.Prefix) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range subnets {
		all = append(all, s.Masked())
	}
	return all
}

// rememberedSubnets reads them from their file. Without one, for it was lost, but
// with leases, they are the bridge's. If that is gone, too, no pod is connected
// any more.
func (b *builtin) rememberedSubnets() (subnetRecord, error) {
	r, err := readSubnets(b.subnetFile())
	if err != nil {
		b.log.Error("remembered subnet is unreadable", "error", err)
	}
	if len(r.Subnets) > 0 || len(b.own()) == 0 {
		return r, nil
	}
	if r.Subnets, err = bridge.Subnets(b.cfg.Name); err != nil || ipam.Check(r.Subnets) == nil {
		return r, err
	}
	for _, l := range b.own() {
		b.leases.setAside(b.leases.path(l.PodID), errors.New("its subnet is not known"))
		b.leases.remove(l.PodID)
	}
	return subnetRecord{}, nil
}

// use makes the parts that depend on the subnets, and gives the leases what they
// have. It changes nothing outside of the process.
func (b *builtin) use(subnets []netip.Prefix) error {
	all := b.own()
	var newest netip.Addr
	if len(all) > 0 {
		newest = all[len(all)-1].IPs[0]
	}
	pool, err := ipam.NewPool(subnets, newest)
	if err != nil {
		return err
	}
	var gateways []netip.Prefix
	for _, s := range slices.Concat(subnets, b.former) {
		gateways = append(gateways, gateway(s))
	}
	br, err := bridge.Open(b.cfg.Name, gateways...)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.closeSockets(); err != nil {
		return err
	}
	b.subnets, b.pool, b.bridge = subnets, pool, br
	b.table = nat.New(b.cfg.Name, b.cfg.Name, b.all()...)
	b.ports = portOwners{}
	for _, l := range all {
		var err error
		if ips := b.pooled(l.IPs); len(ips) > 0 || len(l.IPs) == 0 {
			err = pool.Take(ips)
		}
		if err != nil {
			b.leases.setAside(b.leases.path(l.PodID), err)
			b.leases.remove(l.PodID)
			continue
		}
		if err := b.ports.take(l.Ports, l.PodID, l.Namespace+"/"+l.Name); err != nil {
			b.log.Error("lease has a host port of another pod", "sandbox", l.PodID, "error", err)
		}
	}
	return nil
}

// gateway is the bridge's address in a subnet.
func gateway(s netip.Prefix) netip.Prefix { return netip.PrefixFrom(ipam.Gateway(s), s.Bits()) }

// setup connects a pod. The caller holds the pod's lock.
func (b *builtin) setup(ctx context.Context, pod Pod) (_ *lease, err error) {
	ports, err := normalizePorts(pod.Ports)
	if err != nil {
		return nil, err
	}
	b.countSetup(+1)
	defer b.countSetup(-1)
	if err := b.prepare(); err != nil {
		return nil, err
	}
	var wanted []netip.Addr // the addresses that the pod had
	if old := b.leases.get(pod.ID); old != nil {
		connected, err := b.connected(old, pod.Netns)
		if err != nil || connected {
			return old, err
		}
		// The pair must be gone, not only cut off: this may be the same namespace.
		if err := errors.Join(b.bridge.Remove(old.Link), b.teardown(ctx, old)); err != nil {
			return nil, err
		}
		wanted = old.IPs
	}
	if err := b.checkPorts(ports); err != nil {
		return nil, err
	}
	limits, err := podLimits(pod.Annotations)
	if err != nil {
		return nil, err
	}
	b.warnIgnored(pod)

	var undo sys.Undo
	defer undo.OnError(ctx, &err)
	slot := b.slots.take(pod.ID, pod.Netns)
	l, err := b.allocate(pod, ports, wanted, slot)
	if err != nil {
		return nil, err
	}
	l.Limits = limits
	if err := b.leases.put(l); err != nil {
		b.free(l)
		return nil, err
	}
	undo.Add("disconnect", func(ctx context.Context) error { return b.teardown(ctx, l) })
	if err := b.attach(l, slot != nil); err != nil {
		return nil, err
	}
	undo.Add("remove "+l.Link, func(context.Context) error { return b.bridge.Remove(l.Link) })
	if err := b.complete(l); err != nil {
		return nil, err
	}
	b.slots.resume()
	return l, nil
}

// attach connects the pod's namespace, or if a slot has made it so, makes the
// slot's link the pod's.
func (b *builtin) attach(l *lease, made bool) error {
	if made {
		adopted, err := b.bridge.Adopt(b.port(l))
		if err != nil || adopted {
			return err
		}
		// The bridge is another one meanwhile.
		if err := b.bridge.Remove(l.Link); err != nil {
			return err
		}
	}
	return b.bridge.Attach(b.port(l), l.Netns)
}

// complete does what comes after a pod's link. It can be repeated.
func (b *builtin) complete(l *lease) error {
	if err := b.bridge.Limit(l.Link, l.Limits); err != nil {
		if noIFB := new(bridge.NoIFBError); errors.As(err, &noIFB) {
			err = fmt.Errorf("annotation %s: %w", egressBandwidth, err)
		}
		return err
	}
	return b.addPorts(l)
}

func (b *builtin) addPorts(l *lease) error {
	ports := natPorts(l.Ports, l.IPs)
	if err := b.table.Add(ports); err != nil {
		return err
	}
	if err := b.table.ForgetAdded(ports); err != nil {
		return errors.Join(err, b.table.Remove(ports))
	}
	return nil
}

func (b *builtin) removePorts(l *lease) error {
	ports := natPorts(l.Ports, l.IPs)
	if err := b.table.Remove(ports); err != nil {
		return err
	}
	return b.table.ForgetRemoved(ports)
}

func (b *builtin) countSetup(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.setups += n
}

// connected tells whether what a lease says is so.
func (b *builtin) connected(l *lease, netns string) (bool, error) {
	if l.BootID != b.bootID {
		return false, nil
	}
	ok, err := b.bridge.Attached(b.port(l), netns)
	if err != nil || !ok {
		return false, err
	}
	return true, b.complete(l)
}

func (b *builtin) port(l *lease) bridge.Port {
	return bridge.Port{Name: l.Link, Alias: fmt.Sprintf("pod %s/%s %s", l.Namespace, l.Name, l.PodID), Addrs: l.IPs}
}

// allocate gives the pod addresses and host ports, in memory: those of its slot,
// if it has one, or those that it wants, if it can have them. A slot that it does
// not get is ended.
func (b *builtin) allocate(pod Pod, ports []PortMapping, wanted []netip.Addr, slot *slot) (_ *lease, err error) {
	if slot != nil && wanted != nil {
		if err := b.slots.end(slot); err != nil {
			return nil, err
		}
		slot = nil
	}
	l := &lease{
		Version: leaseVersion, PodID: pod.ID, Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
		Netns: pod.Netns, BootID: b.bootID, Created: time.Now().UTC(), Ports: ports, Link: newLinkName(),
	}
	b.mu.Lock()
	err = b.ports.take(ports, pod.ID, pod.String())
	b.mu.Unlock()
	if err == nil && slot != nil {
		l.IPs, l.Link = slot.ips, slot.link
		return l, nil
	}
	if err == nil {
		if l.IPs, err = b.address(wanted); err == nil {
			return l, nil
		}
		b.mu.Lock()
		b.ports.release(ports, pod.ID)
		b.mu.Unlock()
	}
	if slot != nil {
		err = errors.Join(err, b.slots.end(slot))
	}
	return nil, err
}

// address returns what is wanted or, failing that, other addresses. Those that
// are kept ready for others come last.
func (b *builtin) address(wanted []netip.Addr) ([]netip.Addr, error) {
	get := func() ([]netip.Addr, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(wanted) == len(b.subnets) && b.pool.Take(wanted) == nil {
			return wanted, nil
		}
		return b.pool.Get()
	}
	ips, err := get()
	if full := new(ipam.ExhaustedError); errors.As(err, &full) {
		resume, serr := b.slots.stop()
		if serr != nil {
			return nil, errors.Join(err, serr)
		}
		defer resume()
		return get()
	}
	return ips, err
}

// newLinkName is never that of a pair which is about to end.
func newLinkName() string {
	var b [5]byte
	rand.Read(b[:])
	return bridge.PortName(hex.EncodeToString(b[:]))
}

func (b *builtin) free(l *lease) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ports.release(l.Ports, l.PodID)
	b.pool.Put(b.pooled(l.IPs))
}

// teardown disconnects a pod. The caller holds the pod's lock.
func (b *builtin) teardown(_ context.Context, l *lease) error {
	b.tableMu.RLock()
	defer b.tableMu.RUnlock()
	if l.BootID == b.bootID {
		if err := b.removePorts(l); err != nil {
			return err
		}
		if err := b.bridge.Detach(l.Link); err != nil {
			return err
		}
		if l.Limits.FromPod > 0 {
			if err := b.bridge.Unlimit(l.Link); err != nil {
				return err
			}
		}
	}
	if err := b.leases.remove(l.PodID); err != nil {
		return err
	}
	b.free(l)
	return nil
}

// Annotations by which pods limit their bandwidth.
const (
	ingressBandwidth = "kubernetes.io/ingress-bandwidth"
	egressBandwidth  = "kubernetes.io/egress-bandwidth"
)

// podLimits reads the annotations: ingress is what goes to the pod.
func podLimits(annotations map[string]string) (l bridge.Limits, err error) {
	if l.ToPod, err = rate(annotations, ingressBandwidth); err != nil {
		return l, err
	}
	l.FromPod, err = rate(annotations, egressBandwidth)
	return l, err
}

func (b *builtin) warnIgnored(pod Pod) {
	for _, key := range []string{macAnnotation, ipsAnnotation} {
		if v, ok := pod.Annotations[key]; ok {
			b.log.Warn("annotation has no effect: the built-in network does not have what it asks for",
				"pod", pod.String(), "annotation", key, "value", v)
		}
	}
}

// connecting tells whether pods are being connected.
func (b *builtin) connecting() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.setups > 0
}

// busy tells whether pods are connected or about to be.
func (b *builtin) busy() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.setups > 0 || len(b.own()) > 0
}

// own returns the leases of this network, the oldest first.
func (b *builtin) own() []*lease {
	return slices.DeleteFunc(b.leases.all(), func(l *lease) bool { return l.CNI != nil })
}

// live returns the leases of pods that are connected in this run of the kernel.
func (b *builtin) live() []*lease {
	return slices.DeleteFunc(b.own(), func(l *lease) bool { return l.BootID != b.bootID })
}

// holds tells whether a pod is connected by this network.
func (b *builtin) holds(l *lease, netns string) bool {
	if l.BootID != b.bootID {
		return false
	}
	ok, err := b.bridge.Attached(b.port(l), netns)
	return err == nil && ok
}

// setSubnets takes the cluster's subnets if it may.
func (b *builtin) setSubnets(subnets []netip.Prefix) error {
	if err := ipam.Check(subnets); err != nil {
		return err
	}
	subnets = masked(subnets)
	b.hostMu.Lock()
	defer b.hostMu.Unlock()
	b.clusters = subnets
	switch {
	case slices.Equal(subnets, b.subnets):
		return nil
	case len(b.cfg.Subnets) > 0 || b.busy():
		b.log.Warn("pod subnet has no effect: the built-in network has another one",
			"subnet", ipam.Join(subnets), "used", ipam.Join(b.subnets))
		return nil
	}
	b.joined = false
	b.unused, b.former = append(b.unused, b.former...), nil
	return b.use(subnets)
}

// reconcile puts the host's side in order and removes ports of the bridge that
// no lease speaks of.
func (b *builtin) reconcile() error {
	if b.bridge == nil {
		return nil // no pod was ever connected
	}
	ports, err := b.bridge.Ports()
	if err != nil {
		return err
	}
	live, ready := b.live(), b.slots.links()
	ports = slices.DeleteFunc(ports, func(name string) bool {
		return ready[name] || slices.ContainsFunc(live, func(l *lease) bool { return l.Link == name })
	})
	if len(ports) > 0 {
		b.log.Info("remove links that no pod has", "links", ports)
	}
	if err := b.bridge.RemoveAll(ports); err != nil {
		return err
	}
	if err := b.bridge.RemoveStrayIFBs(); err != nil {
		return err
	}
	if len(live) == 0 {
		return nil
	}
	if err := b.prepare(); err != nil {
		return err
	}
	b.hostMu.Lock()
	defer b.hostMu.Unlock()
	return b.replaceTable()
}

func (b *builtin) close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closeSockets()
}

func (b *builtin) closeSockets() error {
	if b.bridge == nil {
		return nil
	}
	b.bridge.Close()
	return b.table.Close()
}

// destroy removes all that prepare made.
func (b *builtin) destroy() error {
	b.hostMu.Lock()
	defer b.hostMu.Unlock()
	if b.bridge != nil {
		if err := errors.Join(b.table.Destroy(), b.bridge.Destroy()); err != nil {
			return err
		}
	}
	locked, err := b.host.Lock()
	if err != nil {
		return err
	}
	defer locked.Unlock()
	if err := locked.Leave(b.cfg.Name); err != nil {
		return err
	}
	b.joined, b.enrolled = false, false
	if err := os.Remove(b.subnetFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (b *builtin) subnetFile() string { return filepath.Join(b.cfg.StateDir, "subnet.json") }
