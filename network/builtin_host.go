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
		b.log.Info("bridge created", "bridge", b.cfg.Name, "subnet", b.subnet.String())
		b.warnForward()
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
		ports = append(ports, natPorts(l.Ports, l.IPs[0])...)
	}
	if err := b.table.Replace(ports); err != nil {
		return err
	}
	b.tableMade = true
	return nil
}

// join agrees on a subnet with the other instances of the host.
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
	subnet := b.subnet
	if other := overlapping(subnet, others); other != nil {
		if b.cfg.Subnet.IsValid() || len(b.own()) > 0 {
			return fmt.Errorf("subnet %s overlaps %s of instance %s (%s)", subnet, other.Subnet, other.Name, other.StateDir)
		}
		b.log.Warn("remembered subnet is in use, another one is chosen", "subnet", subnet.String(), "instance", other.Name)
		subnet = netip.Prefix{}
	}
	if !subnet.IsValid() {
		if subnet, err = b.chooseSubnet(others); err != nil {
			return err
		}
	}
	b.tableMade = false
	if subnet != b.subnet {
		if err := b.use(subnet); err != nil {
			return err
		}
	}
	data, err := json.Marshal(subnetRecord{Subnet: subnet})
	if err != nil {
		return err
	}
	if err := writeJSON(b.subnetFile(), data); err != nil {
		return err
	}
	if err := locked.Join(shared.Instance{Name: b.cfg.Name, StateDir: b.cfg.StateDir, Subnet: subnet}); err != nil {
		return err
	}
	b.joined = true
	return nil
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

func overlapping(subnet netip.Prefix, others []shared.Instance) *shared.Instance {
	for i := range others {
		if subnet.IsValid() && others[i].Subnet.Overlaps(subnet) {
			return &others[i]
		}
	}
	return nil
}

func (b *builtin) chooseSubnet(others []shared.Instance) (netip.Prefix, error) {
	taken, err := bridge.Taken(b.cfg.Name)
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, i := range others {
		taken = append(taken, i.Subnet)
	}
	return ipam.Choose(append(taken, nameservers()...))
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

// forward turns IP forwarding on if it is off.
func (b *builtin) forward() error {
	on, err := shared.Forwarding()
	if err != nil || on {
		return err
	}
	locked, err := b.host.Lock()
	if err != nil {
		return err
	}
	defer locked.Unlock()
	if err := locked.Forward(); err != nil {
		return err
	}
	b.log.Info("net.ipv4.ip_forward turned on")
	return nil
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
			n := natPorts([]PortMapping{p}, netip.Addr{})[0]
			if slices.ContainsFunc(taken, n.Conflicts) {
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
		table = nat.New(b.cfg.Name, b.cfg.Name, netip.Prefix{})
		defer table.Close()
	}
	_, err := table.Exists()
	return err
}

// subnetRecord is the file that remembers the subnet.
type subnetRecord struct {
	Subnet netip.Prefix `json:"subnet"`
}

// readSubnet returns the remembered subnet, or none.
func (b *builtin) readSubnet() (netip.Prefix, error) {
	data, err := os.ReadFile(b.subnetFile())
	if errors.Is(err, os.ErrNotExist) {
		return netip.Prefix{}, nil
	}
	if err != nil {
		return netip.Prefix{}, err
	}
	var r subnetRecord
	if err := json.Unmarshal(data, &r); err != nil {
		return netip.Prefix{}, fmt.Errorf("%s: %w", b.subnetFile(), err)
	}
	if err := ipam.Check(r.Subnet); err != nil {
		return netip.Prefix{}, fmt.Errorf("%s: %w", b.subnetFile(), err)
	}
	return r.Subnet.Masked(), nil
}
