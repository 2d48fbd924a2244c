package network

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"podstead/network/internal/bridge"
	"podstead/network/internal/ipam"
	"podstead/network/internal/nat"
	"podstead/network/internal/shared"
)

// prepare sees to it that the host's side is complete: the subnet chosen, the
// bridge up, the table there, forwarding on. It looks every time, which costs
// little, for others take these things away: a firewall service that flushes
// all tables, a network service that deletes links, a package that reloads all
// sysctls.
func (b *builtin) prepare() error {
	b.hostMu.Lock()
	defer b.hostMu.Unlock()
	b.hostErr = b.prepareLocked()
	return b.hostErr
}

func (b *builtin) prepareLocked() error {
	if !b.joined {
		if err := b.join(); err != nil {
			return err
		}
	}
	if err := b.forward(); err != nil {
		return err
	}
	created, err := b.bridge.Ensure()
	if err != nil {
		return err
	}
	if created {
		b.log.Info("bridge created", "bridge", b.cfg.Name, "subnet", ipam.Join(b.subnets))
		b.warnForward()
		if err := b.slots.drop(); err != nil { // they were ports of another bridge
			return err
		}
	}
	if b.tableMade {
		if exists, err := b.table.Exists(); err != nil || exists {
			return err
		}
	}
	return b.replaceTable()
}

// replaceTable makes the table of this subnet and version, with the ports of all
// leases.
func (b *builtin) replaceTable() error {
	b.tableMu.Lock()
	defer b.tableMu.Unlock()
	var ports []nat.Port
	for _, l := range b.live() {
		ports = append(ports, natPorts(l.Ports, l.IPs)...)
	}
	if err := b.table.Replace(ports); err != nil {
		return err
	}
	b.tableMade = true
	return nil
}

// join agrees on subnets with the other instances of the host.
func (b *builtin) join() error {
	locked, err := b.host.Lock()
	if err != nil {
		return err
	}
	defer locked.Unlock()
	others, err := b.others(locked)
	if err != nil {
		return err
	}
	subnets, err := b.agree(others)
	if err != nil {
		return err
	}
	b.tableMade = false
	if !slices.Equal(subnets, b.subnets) {
		if err := b.use(subnets); err != nil {
			return err
		}
	}
	if err := b.dropUnused(); err != nil {
		return err
	}
	data, err := json.Marshal(subnetRecord{Subnets: subnets, Former: b.former})
	if err != nil {
		return err
	}
	if err := writeJSON(b.subnetFile(), data); err != nil {
		return err
	}
	if err := locked.Join(shared.Instance{Name: b.cfg.Name, StateDir: b.cfg.StateDir, Subnets: b.all()}); err != nil {
		return err
	}
	b.joined = true
	return nil
}

// dropUnused forgets former subnets that no pod has an address of any more. It
// comes before they are forgotten on disk, and once for each process: while there
// are pods, nothing that depends on subnets may change.
func (b *builtin) dropUnused() error {
	for _, s := range b.unused {
		if err := b.bridge.Drop(gateway(s)); err != nil {
			return err
		}
	}
	b.unused = nil
	return nil
}

// agree returns the subnets to use: those that are set or in use, else those
// that are remembered if they still will do, else others.
func (b *builtin) agree(others []shared.Instance) ([]netip.Prefix, error) {
	set := b.setSubnetsOrNone()
	fixed := len(set) > 0 || len(b.own()) > 0
	for _, s := range b.subnets {
		other, theirs := overlapping(s, others)
		switch {
		case other != nil && fixed:
			return nil, fmt.Errorf("subnet %s overlaps %s of instance %s (%s)", s, theirs, other.Name, other.StateDir)
		case other != nil:
			b.log.Warn("remembered subnet is in use, another one is chosen", "subnet", s.String(), "instance", other.Name)
			return b.chooseSubnets(others)
		}
	}
	v6 := slices.ContainsFunc(b.subnets, func(s netip.Prefix) bool { return s.Addr().Is6() })
	if v6 && fixed {
		return b.subnets, shared.CheckIPv6()
	}
	if len(b.subnets) > 0 && (fixed || v6 == (shared.CheckIPv6() == nil)) {
		return b.subnets, nil
	}
	return b.chooseSubnets(others)
}

// enroll makes the instance known on the host although it has no subnet: its
// pods are connected by plugins.
func (b *builtin) enroll() error {
	b.hostMu.Lock()
	defer b.hostMu.Unlock()
	if b.joined || b.enrolled {
		return nil
	}
	locked, err := b.host.Lock()
	if err != nil {
		return err
	}
	defer locked.Unlock()
	if _, err := b.others(locked); err != nil {
		return err
	}
	if err := locked.Join(shared.Instance{Name: b.cfg.Name, StateDir: b.cfg.StateDir}); err != nil {
		return err
	}
	b.enrolled = true
	return nil
}

// others lists the instances beside this one. One whose state directory is gone
// was not destroyed but deleted, and does not count.
func (b *builtin) others(locked *shared.Locked) ([]shared.Instance, error) {
	all, err := b.host.Instances()
	if err != nil {
		b.log.Error("entry of an instance is unreadable", "error", err)
	}
	var others []shared.Instance
	for _, i := range all {
		if i.Name == b.cfg.Name && i.StateDir == b.cfg.StateDir {
			continue
		}
		if _, err := os.Stat(i.StateDir); errors.Is(err, os.ErrNotExist) {
			b.log.Warn("instance is gone without a trace but its entry", "instance", i.Name, "stateDir", i.StateDir)
			if err := locked.Forget(i.Name); err != nil {
				return nil, err
			}
			continue
		}
		if i.Name == b.cfg.Name {
			return nil, fmt.Errorf("network name %s is that of the instance with state in %s", i.Name, i.StateDir)
		}
		others = append(others, i)
	}
	return others, nil
}

func overlapping(subnet netip.Prefix, others []shared.Instance) (*shared.Instance, netip.Prefix) {
	for i := range others {
		for _, s := range others[i].Subnets {
			if s.Overlaps(subnet) {
				return &others[i], s
			}
		}
	}
	return nil, netip.Prefix{}
}

// chooseSubnets chooses an IPv4 subnet and, if the host has IPv6, one of it.
func (b *builtin) chooseSubnets(others []shared.Instance) ([]netip.Prefix, error) {
	taken, err := bridge.Taken(b.cfg.Name)
	if err != nil {
		return nil, err
	}
	for _, i := range others {
		taken = append(taken, i.Subnets...)
	}
	v4, err := ipam.Choose(append(taken, nameservers()...))
	if err != nil {
		return nil, err
	}
	if err := shared.CheckIPv6(); err != nil {
		b.log.Info("pods get no IPv6 addresses", "reason", err)
		return []netip.Prefix{v4}, nil
	}
	return []netip.Prefix{v4, ipam.Choose6(b.identity(), taken)}, nil
}

// identity names this instance among all in the world.
func (b *builtin) identity() string {
	machine, err := os.ReadFile("/etc/machine-id")
	if err != nil || len(machine) < 16 {
		machine = []byte(b.bootID) // remembered with the subnet
	}
	return strings.TrimSpace(string(machine)) + " " + b.cfg.Name + " " + b.cfg.StateDir
}

// nameservers lists those of the host as prefixes: they may lie behind the
// default route, and a subnet that covers one would cut the host off from it.
func nameservers() []netip.Prefix {
	f, err := os.Open("/etc/resolv.conf")
	if err != nil {
		return nil
	}
	defer f.Close()
	var found []netip.Prefix
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if addr, err := netip.ParseAddr(fields[1]); err == nil && addr.Is4() {
			found = append(found, netip.PrefixFrom(addr, 32))
		}
	}
	return found
}

// forward turns forwarding on where it is off.
func (b *builtin) forward() error {
	for _, s := range b.all() {
		family := shared.IPv4
		if s.Addr().Is6() {
			family = shared.IPv6
		}
		on, err := shared.Forwarding(family)
		if err != nil {
			return err
		}
		if on {
			continue
		}
		if err := b.turnOn(family); err != nil {
			return err
		}
	}
	return nil
}

func (b *builtin) turnOn(family shared.Family) error {
	locked, err := b.host.Lock()
	if err != nil {
		return err
	}
	defer locked.Unlock()
	if err := locked.Forward(family); err != nil {
		return err
	}
	b.log.Info("forwarding turned on", "family", string(family))
	return nil
}

// checkPorts tells what of the host ports this network or the kernel cannot do,
// or another instance has.
func (b *builtin) checkPorts(ports []PortMapping) error {
	for _, p := range ports {
		if p.HostIP.IsValid() && !slices.ContainsFunc(b.subnets, func(s netip.Prefix) bool { return s.Addr().Is4() == p.HostIP.Is4() }) {
			return fmt.Errorf("host port %s: pods have no address of that family, only of %s", portString(p), ipam.Join(b.subnets))
		}
		if p.HostIP == netip.IPv6Loopback() {
			return fmt.Errorf("host port %s: the kernel leads nothing from ::1 to a pod", portString(p))
		}
		if p.Protocol == "SCTP" {
			if err := nat.CheckSCTP(); err != nil {
				return fmt.Errorf("host port %s: %w", portString(p), err)
			}
		}
	}
	return b.checkOthers(ports)
}

// checkOthers tells if another instance has one of these host ports: of two
// tables that lead it to different pods the kernel would silently take one.
func (b *builtin) checkOthers(ports []PortMapping) error {
	if len(ports) == 0 {
		return nil
	}
	all, err := b.host.Instances()
	if err != nil {
		b.log.Error("entry of an instance is unreadable", "error", err)
	}
	for _, i := range all {
		if i.Name == b.cfg.Name {
			continue
		}
		taken, err := b.table.PortsOf(i.Name)
		if err != nil {
			return err
		}
		for _, p := range ports {
			if slices.ContainsFunc(taken, natPort(p, netip.Addr{}).Conflicts) {
				return fmt.Errorf("host port %s is taken by a pod of instance %s (%s)", portString(p), i.Name, i.StateDir)
			}
		}
	}
	return nil
}

// warnForward tells of firewalls that are known to be in the way.
func (b *builtin) warnForward() {
	drops, err := b.table.ForwardDrops()
	if err != nil {
		b.log.Warn("firewall cannot be looked at", "error", err)
	}
	for _, chain := range drops {
		b.log.Warn("a firewall drops what is forwarded to and from pods unless it has rules to accept it",
			"chain", chain, "bridge", b.cfg.Name,
			"hint", fmt.Sprintf("iptables -I FORWARD -i %[1]s -j ACCEPT; iptables -I FORWARD -o %[1]s -j ACCEPT", b.cfg.Name))
	}
}

// ready tells what keeps pods from being connected, as far as is known without
// connecting one.
func (b *builtin) ready() error {
	b.hostMu.Lock()
	defer b.hostMu.Unlock()
	if b.hostErr != nil {
		// Nobody connects pods on a node that is not ready: try again here.
		b.hostErr = b.prepareLocked()
		return b.hostErr
	}
	table := b.table
	if table == nil { // no pod was ever connected
		table = nat.New(b.cfg.Name, b.cfg.Name)
		defer table.Close()
	}
	_, err := table.Exists()
	return err
}

// subnetRecord is the file that remembers the subnets.
type subnetRecord struct {
	Subnets []netip.Prefix `json:"subnets"`
	Former  []netip.Prefix `json:"former,omitempty"`
}

// readSubnets returns the subnets that a file remembers, or none.
func readSubnets(file string) (subnetRecord, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return subnetRecord{}, nil
	}
	if err != nil {
		return subnetRecord{}, err
	}
	var r subnetRecord
	if err = json.Unmarshal(data, &r); err == nil {
		err = ipam.Check(r.Subnets)
	}
	for _, s := range r.Former {
		if err == nil {
			err = ipam.Check([]netip.Prefix{s})
		}
	}
	if err != nil {
		return subnetRecord{}, fmt.Errorf("%s: %w", file, err)
	}
	return subnetRecord{Subnets: masked(r.Subnets), Former: masked(r.Former)}, nil
}
