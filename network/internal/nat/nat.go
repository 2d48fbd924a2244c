// Package nat is the netfilter side of the built-in network: one nftables table
// per instance with a fixed set of rules, in which only the elements of two
// maps, the host ports, change as pods come and go. Adding or removing a pod's
// ports is one atomic transaction that takes the kernel a fraction of a
// millisecond however many there are.
//
// As `nft list table inet NAME` shows it:
//
//	map host_ports    { type inet_proto . inet_service : ipv4_addr . inet_service }
//	map host_ip_ports { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }
//	chain guard {        # before anything else looks at a packet
//	    type filter hook prerouting priority raw
//	    iifname BRIDGE ip daddr 127.0.0.0/8 drop
//	    iifname BRIDGE ip saddr 127.0.0.0/8 drop
//	}
//	chain to_pods {
//	    meta nfproto ipv4 dnat ip to ip daddr . meta l4proto . th dport map @host_ip_ports
//	    meta nfproto ipv4 fib daddr type local dnat ip to meta l4proto . th dport map @host_ports
//	}
//	chain prerouting { type nat hook prerouting priority dstnat; jump to_pods }
//	chain output {     type nat hook output priority dstnat; jump to_pods }
//	chain postrouting {
//	    type nat hook postrouting priority srcnat
//	    oifname BRIDGE ip saddr 127.0.0.0/8 masquerade
//	    oifname BRIDGE ip saddr SUBNET ct status dnat masquerade
//	    oifname != BRIDGE ip saddr SUBNET ip daddr != SUBNET ip daddr != 224.0.0.0/4 masquerade fully-random
//	}
//	chain redirects { type filter hook output priority filter; oifname BRIDGE icmp type redirect drop }
package nat

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"
)

// Table is the table of one instance, whether it exists yet or not. Its methods
// act in the network namespace of the process and are safe for concurrent use.
// Close must follow.
type Table struct {
	session
	bridge string
	subnet netip.Prefix
	table  *nftables.Table
	ports  *nftables.Set // any address of the host
	ipPort *nftables.Set // one address
}

// Port is one host port: what arrives for HostIP:HostPort goes to PodIP:PodPort.
type Port struct {
	Protocol uint8      // IPPROTO_*
	HostIP   netip.Addr // zero: all addresses of the host
	HostPort uint16
	PodIP    netip.Addr
	PodPort  uint16
}

// New describes the table called name for the pods of subnet behind bridge.
func New(name, bridge string, subnet netip.Prefix) *Table {
	t := &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
	target := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	newMap := func(name string, key ...nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{
			Table: t, Name: name, IsMap: true, Concatenation: true,
			KeyType: nftables.MustConcatSetType(key...), DataType: target,
			KeyByteOrder: binaryutil.BigEndian,
		}
	}
	return &Table{
		bridge: bridge, subnet: subnet.Masked(), table: t,
		ports:  newMap("host_ports", nftables.TypeInetProto, nftables.TypeInetService),
		ipPort: newMap("host_ip_ports", nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService),
	}
}

// Exists tells whether the table is there. Others take it away, too: a firewall
// service that is restarted often flushes everything.
func (t *Table) Exists() (exists bool, err error) { return t.exists(t.table) }

func (t *Table) exists(table *nftables.Table) (exists bool, err error) {
	err = t.do(func(c *nftables.Conn) error {
		_, err := c.ListTableOfFamily(table.Name, table.Family)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		exists = err == nil
		return err
	})
	if err != nil {
		return false, fmt.Errorf("look for nftables table %s: %w", table.Name, err)
	}
	return exists, nil
}

// Replace makes the table, in place of the one that may be there, with these
// host ports, in one transaction: at no moment is a port or rule missing.
func (t *Table) Replace(ports []Port) error {
	err := t.do(func(c *nftables.Conn) error {
		c.AddTable(t.table) // so that there is one to delete
		c.DelTable(t.table)
		c.AddTable(t.table)
		for _, m := range []*nftables.Set{t.ports, t.ipPort} {
			if err := c.AddSet(m, nil); err != nil {
				return err
			}
		}
		t.addChains(c)
		if err := t.addElements(c, ports); err != nil {
			return err
		}
		return c.Flush()
	})
	if err != nil {
		return fmt.Errorf("make nftables table %s: %w", t.table.Name, err)
	}
	return nil
}

// Add adds host ports.
func (t *Table) Add(ports []Port) error {
	if len(ports) == 0 {
		return nil
	}
	err := t.do(func(c *nftables.Conn) error {
		if err := t.addElements(c, ports); err != nil {
			return err
		}
		return c.Flush()
	})
	if err != nil {
		return fmt.Errorf("add %d host ports to nftables table %s: %w", len(ports), t.table.Name, err)
	}
	return nil
}

func (t *Table) addElements(c *nftables.Conn, ports []Port) error {
	anyIP, oneIP := t.elements(ports)
	if len(anyIP) > 0 {
		if err := c.SetAddElements(t.ports, anyIP); err != nil {
			return err
		}
	}
	if len(oneIP) > 0 {
		return c.SetAddElements(t.ipPort, oneIP)
	}
	return nil
}

// Remove removes host ports. Those that are not there are no error.
func (t *Table) Remove(ports []Port) error {
	err := t.remove(ports)
	if !errors.Is(err, unix.ENOENT) || len(ports) <= 1 {
		return ignoreNotThere(err)
	}
	// A transaction is all or nothing: what is there goes one by one.
	for _, p := range ports {
		if err := ignoreNotThere(t.remove([]Port{p})); err != nil {
			return err
		}
	}
	return nil
}

func ignoreNotThere(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func (t *Table) remove(ports []Port) error {
	if len(ports) == 0 {
		return nil
	}
	anyIP, oneIP := t.elements(ports)
	err := t.do(func(c *nftables.Conn) error {
		if len(anyIP) > 0 {
			if err := c.SetDeleteElements(t.ports, anyIP); err != nil {
				return err
			}
		}
		if len(oneIP) > 0 {
			if err := c.SetDeleteElements(t.ipPort, oneIP); err != nil {
				return err
			}
		}
		return c.Flush()
	})
	if err != nil {
		return fmt.Errorf("remove %d host ports from nftables table %s: %w", len(ports), t.table.Name, err)
	}
	return nil
}

// elements encodes ports for the two maps. Each field of a concatenation is
// padded to a multiple of four bytes.
func (t *Table) elements(ports []Port) (anyIP, oneIP []nftables.SetElement) {
	for _, p := range ports {
		key := slices.Concat([]byte{p.Protocol, 0, 0, 0}, pad(p.HostPort))
		val := slices.Concat(p.PodIP.AsSlice(), pad(p.PodPort))
		if p.HostIP.IsValid() {
			oneIP = append(oneIP, nftables.SetElement{Key: append(p.HostIP.AsSlice(), key...), Val: val})
		} else {
			anyIP = append(anyIP, nftables.SetElement{Key: key, Val: val})
		}
	}
	return anyIP, oneIP
}

func pad(port uint16) []byte { return append(binaryutil.BigEndian.PutUint16(port), 0, 0) }

// Conflicts tells whether two host ports cannot be had by two pods.
func (p Port) Conflicts(other Port) bool {
	return p.Protocol == other.Protocol && p.HostPort == other.HostPort &&
		(!p.HostIP.IsValid() || !other.HostIP.IsValid() || p.HostIP == other.HostIP)
}

// PortsOf lists the host ports in the table of another instance. It has none if
// it has no table.
func (t *Table) PortsOf(name string) (ports []Port, err error) {
	other := New(name, "", netip.Prefix{})
	if exists, err := t.exists(other.table); err != nil || !exists {
		return nil, err
	}
	err = t.do(func(c *nftables.Conn) error {
		for _, m := range []*nftables.Set{other.ports, other.ipPort} {
			elements, err := c.GetSetElements(m)
			if err != nil {
				return err
			}
			for _, e := range elements {
				if p, ok := decode(e.Key, m == other.ipPort); ok {
					ports = append(ports, p)
				}
			}
		}
		return nil
	})
	if err == nil {
		return ports, nil
	}
	// The library hides the cause of the error; the table may be gone by now.
	if exists, xerr := t.exists(other.table); xerr == nil && !exists {
		return nil, nil
	}
	return nil, fmt.Errorf("list host ports of nftables table %s: %w", name, err)
}

// decode reads the key of an element.
func decode(key []byte, withIP bool) (p Port, ok bool) {
	if withIP {
		if len(key) < 4 {
			return p, false
		}
		p.HostIP, key = netip.AddrFrom4([4]byte(key)), key[4:]
	}
	if len(key) < 6 {
		return p, false
	}
	p.Protocol, p.HostPort = key[0], binaryutil.BigEndian.Uint16(key[4:6])
	return p, true
}

// Destroy removes the table. One that is gone is no error.
func (t *Table) Destroy() error {
	err := t.do(func(c *nftables.Conn) error {
		c.DelTable(t.table)
		return c.Flush()
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete nftables table %s: %w", t.table.Name, err)
	}
	return nil
}

// Close closes the sockets and changes nothing in the kernel.
func (t *Table) Close() error { return t.close() }
