// Package bridge is the kernel side of the built-in network: a Linux bridge on
// the host and a veth pair for each pod, one end a port of the bridge and the
// other eth0 in the pod's network namespace. It speaks netlink and keeps no
// record: callers write what they are about to do before they call.
package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Bridge is the bridge of one instance, whether it exists yet or not. Its
// methods act in the network namespace that Open was called in, which must be
// the one of the whole process, and are safe for concurrent use except for
// Ensure and Destroy.
type Bridge struct {
	name     string
	gateways []netip.Prefix // addresses of the host in the pod network, with the subnets' lengths
	ipv6     bool           // one of them is
	nl       *netlink.Handle
}

const kernelTimeout = 30 * time.Second

// Open prepares to work on the bridge called name. gateways are its addresses,
// each of a subnet of pods; subnets do not overlap.
func Open(name string, gateways ...netip.Prefix) (*Bridge, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	// An answer that does not come must not hold up all pods.
	if err := h.SetSocketTimeout(kernelTimeout); err != nil {
		h.Close()
		return nil, err
	}
	ipv6 := slices.ContainsFunc(gateways, func(g netip.Prefix) bool { return g.Addr().Is6() })
	return &Bridge{name: name, gateways: gateways, ipv6: ipv6, nl: h}, nil
}

// Close closes the netlink socket and changes nothing in the kernel.
func (b *Bridge) Close() { b.nl.Close() }

// Ensure makes the bridge if it is missing and reports whether it was. One that
// is there keeps its ports and gets what it lacks.
func (b *Bridge) Ensure() (created bool, err error) {
	link, err := b.find()
	if err != nil {
		return false, err
	}
	if link == nil {
		if link, err = b.create(); err != nil {
			return false, err
		}
		created = true
	}
	if !created && link.Attrs().Flags&net.FlagUp != 0 {
		if ok, err := b.hasAddresses(link); err != nil || ok {
			return false, err
		}
	}
	if err := b.configure(link); err != nil {
		if created {
			err = errors.Join(err, b.nl.LinkDel(link))
		}
		return false, err
	}
	return created, nil
}

// find returns the bridge, or nil if there is none.
func (b *Bridge) find() (netlink.Link, error) {
	link, err := b.nl.LinkByName(b.name)
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for bridge %s: %w", b.name, err)
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("link %s is there already and is no bridge but a %s", b.name, link.Type())
	}
	return link, nil
}

func (b *Bridge) create() (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = b.name
	attrs.MTU = b.egressMTU()
	// Without an address of its own a bridge takes the lowest one of its ports,
	// and changes it as pods come and go, which pods would notice.
	attrs.HardwareAddr = MAC(b.gateways[0].Addr())
	link := &netlink.Bridge{LinkAttrs: attrs}
	if err := b.nl.LinkAdd(link); err != nil {
		return nil, fmt.Errorf("create bridge %s: %w", b.name, err)
	}
	return b.nl.LinkByName(b.name)
}

// configure brings a bridge into shape: sysctls before it is up, so that it
// never sends or takes a router advertisement.
func (b *Bridge) configure(link netlink.Link) error {
	for _, s := range []struct{ key, value string }{
		// A pod could otherwise make itself the host's IPv6 router (CVE-2020-10749).
		{"ipv6/conf/" + b.name + "/accept_ra", "0"},
		{"ipv6/conf/" + b.name + "/accept_redirects", "0"},
		// Nobody else has these addresses; to ask around for them takes a second.
		{"ipv6/conf/" + b.name + "/accept_dad", "0"},
		{"ipv6/conf/" + b.name + "/disable_ipv6", flag(!b.ipv6)},
		// Replies to a client on 127.0.0.1 that was led to a pod come in here.
		// Package nat drops what pods send to 127.0.0.0/8 (CVE-2020-8558).
		{"ipv4/conf/" + b.name + "/route_localnet", "1"},
		{"ipv4/conf/" + b.name + "/send_redirects", "0"},
	} {
		if err := WriteSysctl(s.key, s.value); err != nil {
			return err
		}
	}
	if err := b.setAddresses(link); err != nil {
		return err
	}
	if err := b.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("set bridge %s up: %w", b.name, err)
	}
	return nil
}

// addresses lists those of a link, except for link-local ones.
func (b *Bridge) addresses(link netlink.Link) ([]netlink.Addr, error) {
	addrs, err := Whole(func() ([]netlink.Addr, error) { return b.nl.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", b.name, err)
	}
	return slices.DeleteFunc(addrs, func(a netlink.Addr) bool {
		return a.IPNet == nil || a.IP.To4() == nil && a.IP.IsLinkLocalUnicast()
	}), nil
}

func (b *Bridge) hasAddresses(link netlink.Link) (bool, error) {
	addrs, err := b.addresses(link)
	if err != nil {
		return false, err
	}
	for _, g := range b.gateways {
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return toPrefix(a.IPNet) == g }) {
			return false, nil
		}
	}
	return true, nil
}

// Drop takes away an address that the bridge had for a subnet without pods.
func (b *Bridge) Drop(gateway netip.Prefix) error {
	link, err := b.find()
	if err != nil || link == nil {
		return err
	}
	if err := b.nl.AddrDel(link, address(gateway)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("remove address %s of %s: %w", gateway, b.name, err)
	}
	return nil
}

// gateway is the bridge's address in a pod's subnet.
func (b *Bridge) gateway(pod netip.Addr) netip.Prefix {
	for _, g := range b.gateways {
		if g.Masked().Contains(pod) {
			return g
		}
	}
	return netip.Prefix{}
}

// setAddresses gives the bridge its addresses and takes others away, which are
// of subnets that the instance had before.
func (b *Bridge) setAddresses(link netlink.Link) error {
	addrs, err := b.addresses(link)
	if err != nil {
		return err
	}
	for i := range addrs {
		if slices.Contains(b.gateways, toPrefix(addrs[i].IPNet)) {
			continue
		}
		if err := b.nl.AddrDel(link, &addrs[i]); err != nil {
			return fmt.Errorf("remove address %s of %s: %w", addrs[i].IPNet, b.name, err)
		}
	}
	for _, g := range b.gateways {
		if err := b.nl.AddrReplace(link, address(g)); err != nil {
			return fmt.Errorf("add address %s to %s: %w", g, b.name, err)
		}
	}
	return nil
}

// address is one to be used at once: nobody else has it (RFC 4862, 5.4).
func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: toIPNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func flag(on bool) string {
	if on {
		return "1"
	}
	return "0"
}

// egressMTU is the MTU of the link that the host's default route leads out of:
// a pod that sends larger packets than that depends on ICMP coming back.
func (b *Bridge) egressMTU() int {
	const ethernet = 1500
	routes, err := b.routes(unix.RT_TABLE_MAIN)
	if err != nil {
		return ethernet
	}
	for _, r := range routes {
		if (r.Dst != nil && !r.Dst.IP.IsUnspecified()) || r.LinkIndex == 0 {
			continue
		}
		if link, err := b.nl.LinkByIndex(r.LinkIndex); err == nil && link.Attrs().MTU > 0 {
			return link.Attrs().MTU
		}
	}
	return ethernet
}

// Destroy removes the bridge and whatever ports it still has.
func (b *Bridge) Destroy() error {
	link, err := b.find()
	if err != nil || link == nil {
		return err
	}
	ports, err := b.Ports()
	if err != nil {
		return err
	}
	if err := b.RemoveAll(ports); err != nil {
		return err
	}
	if err := b.nl.LinkDel(link); err != nil && !isNotFound(err) {
		return fmt.Errorf("delete bridge %s: %w", b.name, err)
	}
	return nil
}

// Taken lists what of the address space the host uses: the destinations of its
// routes, except for default routes, and its addresses. Those of our bridge itself
// are left out.
func Taken(bridge string) ([]netip.Prefix, error) {
	b, err := Open(bridge)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	own := 0
	if link, err := b.find(); err != nil {
		return nil, err
	} else if link != nil {
		own = link.Attrs().Index
	}
	var taken []netip.Prefix
	routes, err := b.routes(unix.RT_TABLE_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if p := toPrefix(r.Dst); p.Bits() > 0 && (own == 0 || r.LinkIndex != own) {
			taken = append(taken, p)
		}
	}
	addrs, err := Whole(func() ([]netlink.Addr, error) { return b.nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if a.LinkIndex != own {
			taken = append(taken, toPrefix(a.IPNet).Masked())
		}
	}
	return taken, nil
}

// Subnets reads from the kernel the subnets of the bridge called name; none if
// there is no such bridge.
func Subnets(name string) ([]netip.Prefix, error) {
	b, err := Open(name)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	link, err := b.find()
	if err != nil || link == nil {
		return nil, err
	}
	addrs, err := b.addresses(link)
	if err != nil {
		return nil, err
	}
	var subnets []netip.Prefix
	for _, a := range addrs {
		subnets = append(subnets, toPrefix(a.IPNet).Masked())
	}
	return subnets, nil
}

// MAC is the hardware address that goes with an IP address, by its last four
// bytes: locally administered, and the same whenever the address is given out
// again, so that no neighbour cache is ever wrong about it.
func MAC(ip netip.Addr) net.HardwareAddr {
	b := ip.AsSlice()
	return append(net.HardwareAddr{0x0a, 0x58}, b[len(b)-4:]...)
}

// WriteSysctl writes below /proc/sys/net in the network namespace of the
// calling thread. A key that the kernel does not have (no IPv6) is no error.
func WriteSysctl(key, value string) error {
	err := os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("set sysctl net.%s=%s: %w", strings.ReplaceAll(key, "/", "."), value, err)
	}
	return nil
}

func (b *Bridge) routes(table int) ([]netlink.Route, error) {
	return Whole(func() ([]netlink.Route, error) {
		return b.nl.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	})
}

// Whole asks for a list again when the kernel says that it changed while it was
// read, as lists do where pods come and go.
func Whole[T any](list func() ([]T, error)) (all []T, err error) {
	const tries = 50
	for range tries {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

func isNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// toPrefix returns the zero Prefix for nil, which netlink uses for a default
// route.
func toPrefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones)
}
