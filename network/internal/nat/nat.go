// Package nat is the netfilter side of the built-in network: one nftables table
// per instance with a fixed set of rules, in which only the elements of two
// maps, the host ports, change as pods come and go. Adding or removing a pod's
// ports is one atomic transaction that takes the kernel a fraction of a
// millisecond however many there are.
//
// As `nft list table inet NAME` shows it, for IPv4:
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
//
// For IPv6 there are the same again: maps host_ports6 and host_ip_ports6, and
// rules for ::1, ff00::/8 and ICMPv6.
package nat

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Table is the table of one instance, whether it exists yet or not. Its methods
// act in the network namespace of the process and are safe for concurrent use.
// Close must follow.
type Table struct {
	session
	bridge   string
	table    *nftables.Table
	families []*family
}

// Port is one host port: what arrives for HostIP:HostPort goes to PodIP:PodPort.
type Port struct {
	Protocol uint8      // IPPROTO_*
	HostIP   netip.Addr // zero: all addresses of the host that are of PodIP's family
	HostPort uint16
	PodIP    netip.Addr
	PodPort  uint16
}

// New describes the table called name for the pods of subnets behind bridge.
func New(name, bridge string, subnets ...netip.Prefix) *Table {
	t := &Table{bridge: bridge, table: &nftables.Table{Name: name, Family: nftables.TableFamilyINet}}
	for _, v6 := range []bool{false, true} {
		var of []netip.Prefix
		for _, s := range subnets {
			if s.Addr().Is6() == v6 {
				of = append(of, s.Masked())
			}
		}
		if len(of) > 0 {
			t.families = append(t.families, newFamily(t.table, of))
		}
	}
	return t
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
		for _, f := range t.families {
			if err := errors.Join(c.AddSet(f.ports, nil), c.AddSet(f.ipPorts, nil)); err != nil {
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
	return t.eachMap(ports, c.SetAddElements)
}

// eachMap does something with the elements that ports are in each map.
func (t *Table) eachMap(ports []Port, do func(*nftables.Set, []nftables.SetElement) error) error {
	for _, f := range t.families {
		anyIP, oneIP := f.elements(ports)
		if len(anyIP) > 0 {
			if err := do(f.ports, anyIP); err != nil {
				return err
			}
		}
		if len(oneIP) > 0 {
			if err := do(f.ipPorts, oneIP); err != nil {
				return err
			}
		}
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
	err := t.do(func(c *nftables.Conn) error {
		if err := t.eachMap(ports, c.SetDeleteElements); err != nil {
			return err
		}
		return c.Flush()
	})
	if err != nil {
		return fmt.Errorf("remove %d host ports from nftables table %s: %w", len(ports), t.table.Name, err)
	}
	return nil
}

// Conflicts tells whether two host ports cannot be had by two pods.
func (p Port) Conflicts(other Port) bool {
	return p.Protocol == other.Protocol && p.HostPort == other.HostPort &&
		(!p.HostIP.IsValid() || !other.HostIP.IsValid() || p.HostIP == other.HostIP)
}

// PortsOf lists the host ports in the table of another instance. It has none if
// it has no table.
func (t *Table) PortsOf(name string) (ports []Port, err error) {
	other := New(name, "", anyIPv4, anyIPv6)
	if exists, err := t.exists(other.table); err != nil || !exists {
		return nil, err
	}
	err = t.do(func(c *nftables.Conn) error {
		sets, err := c.GetSets(other.table)
		if err != nil {
			return err
		}
		for _, s := range sets {
			for _, f := range other.families {
				if s.Name != f.ports.Name && s.Name != f.ipPorts.Name {
					continue
				}
				elements, err := c.GetSetElements(s)
				if err != nil {
					return err
				}
				for _, e := range elements {
					if p, ok := f.decode(e.Key, s.Name == f.ipPorts.Name); ok {
						ports = append(ports, p)
					}
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
