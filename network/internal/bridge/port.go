package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"podstead/sys"
)

// PodInterface is the name of the interface in a pod.
const PodInterface = "eth0"

// Port connects one pod: a veth pair.
type Port struct {
	Name  string       // of the host's end; unique on the host
	Alias string       // shown by ip link: which pod this is for
	Addrs []netip.Addr // of the pod, one of a family, each in a subnet of the bridge
}

// Attach connects the network namespace at the path netns to the bridge and
// brings loopback up in it. On an error nothing of it is left.
func (b *Bridge) Attach(p Port, netns string) (err error) {
	link, err := b.find()
	if err != nil {
		return err
	}
	if link == nil {
		return fmt.Errorf("bridge %s is gone", b.name)
	}
	if err := b.createPair(p, link, netns); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Remove(p.Name))
		}
	}()
	// The host's end first: the pair has its carrier, and the port forwards, as
	// soon as the pod's end is up.
	if err := b.enable(p); err != nil {
		return err
	}
	if err := b.configurePod(p, netns); err != nil {
		return err
	}
	return b.awaitForwarding(p.Name)
}

// awaitForwarding waits until the port forwards. The kernel acts on the carrier
// in the background, and the first packet that comes before, a question for a
// neighbour's address, would be lost and asked again a second later. Asking for
// the link makes kernels from 6.8 on do it at once; with older ones it is a
// matter of milliseconds.
func (b *Bridge) awaitForwarding(name string) error {
	const step = time.Millisecond
	for waited := time.Duration(0); ; waited += step {
		link, err := b.nl.LinkByName(name)
		if err != nil {
			return fmt.Errorf("look for %s: %w", name, err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if waited > forwardingTimeout {
			return fmt.Errorf("%s is %s %v after it was set up", name, link.Attrs().OperState, waited)
		}
		time.Sleep(step)
	}
}

const forwardingTimeout = 5 * time.Second

// createPair makes both ends where they belong.
func (b *Bridge) createPair(p Port, bridge netlink.Link, netns string) error {
	ns, err := os.Open(netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	err = addPair(p, bridge, int(ns.Fd()))
	if errors.Is(err, unix.EEXIST) {
		// A pod that was disconnected and is connected again before its
		// namespace ended still has the old pair.
		if cleared, cerr := b.clearPod(netns); cerr != nil || !cleared {
			return errors.Join(fmt.Errorf("create veth %s: %w", p.Name, err), cerr)
		}
		err = addPair(p, bridge, int(ns.Fd()))
	}
	if err != nil {
		return fmt.Errorf("create veth %s and %s in %s: %w", p.Name, PodInterface, netns, err)
	}
	return nil
}

// addPair asks for the pair in one request: neither end is ever seen in another
// namespace or outside the bridge, where nobody would look for it after a
// crash. (netlink.LinkAdd makes it a port of the bridge with a second one.)
func addPair(p Port, bridge netlink.Link, nsFd int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	mtu := nl.Uint32Attr(uint32(bridge.Attrs().MTU))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(p.Name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, mtu))
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge.Attrs().Index))))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(PodInterface))
	peer.AddRtAttr(unix.IFLA_MTU, mtu)
	peer.AddRtAttr(unix.IFLA_ADDRESS, MAC(p.Addrs[0]))
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(nsFd)))
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// clearPod deletes eth0 in a pod if it is the end of a pair whose other end is
// a port of this bridge, and reports whether it was.
func (b *Bridge) clearPod(netns string) (cleared bool, err error) {
	err = inNamespace(netns, func(h *netlink.Handle) error {
		eth, err := h.LinkByName(PodInterface)
		if isNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		peer, err := b.nl.LinkByIndex(eth.Attrs().ParentIndex)
		if err != nil || eth.Type() != "veth" || peer.Type() != "veth" || !b.isPort(peer) {
			return fmt.Errorf("%s has an interface %s that is not ours", netns, PodInterface)
		}
		cleared = true
		return h.LinkDel(eth)
	})
	return cleared, err
}

func (b *Bridge) isPort(link netlink.Link) bool {
	bridge, err := b.find()
	return err == nil && bridge != nil && link.Attrs().MasterIndex == bridge.Attrs().Index
}

// enable brings the host's end up.
func (b *Bridge) enable(p Port) error {
	link, err := b.nl.LinkByName(p.Name)
	if err != nil {
		return fmt.Errorf("look for %s: %w", p.Name, err)
	}
	if err := b.nl.LinkSetAlias(link, p.Alias); err != nil {
		return fmt.Errorf("set alias of %s: %w", p.Name, err)
	}
	// A port needs no address; with IPv6 on, the kernel would give it one and
	// announce it to the pod.
	if err := WriteSysctl("ipv6/conf/"+p.Name+"/disable_ipv6", "1"); err != nil {
		return err
	}
	// Where bridged packets go through iptables (net.bridge.bridge-nf-call-iptables),
	// what a pod sends to a host port of its own is bridged back to where it
	// came from, which a port must be told to allow.
	if err := b.nl.LinkSetHairpin(link, true); err != nil {
		return fmt.Errorf("set hairpin mode of %s: %w", p.Name, err)
	}
	if err := b.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", p.Name, err)
	}
	return nil
}

// configurePod gives the pod its address and default route.
func (b *Bridge) configurePod(p Port, netns string) error {
	return inNamespace(netns, func(h *netlink.Handle) error {
		if err := loopbackUp(h); err != nil {
			return err
		}
		eth, err := h.LinkByName(PodInterface)
		if err != nil {
			return fmt.Errorf("look for %s: %w", PodInterface, err)
		}
		if err := p.sysctls(); err != nil {
			return err
		}
		for _, a := range p.Addrs {
			addr := netip.PrefixFrom(a, b.gateway(a).Bits())
			if err := h.AddrAdd(eth, address(addr)); err != nil {
				return fmt.Errorf("add address %s to %s: %w", addr, PodInterface, err)
			}
		}
		if err := h.LinkSetUp(eth); err != nil {
			return fmt.Errorf("set %s up: %w", PodInterface, err)
		}
		for _, a := range p.Addrs {
			gateway := b.gateway(a).Addr()
			route := &netlink.Route{LinkIndex: eth.Attrs().Index, Gw: gateway.AsSlice()}
			if err := h.RouteAdd(route); err != nil {
				return fmt.Errorf("add default route by %s: %w", gateway, err)
			}
		}
		return nil
	})
}

// sysctls prepares eth0 of the namespace that the calling thread is in.
func (p Port) sysctls() error {
	const conf = "ipv6/conf/" + PodInterface
	if !slices.ContainsFunc(p.Addrs, netip.Addr.Is6) {
		// A link-local address would be the door for router advertisements of
		// other pods (CVE-2020-10749).
		return WriteSysctl(conf+"/disable_ipv6", "1")
	}
	return errors.Join(
		WriteSysctl(conf+"/disable_ipv6", "0"),
		WriteSysctl(conf+"/accept_ra", "0"),
		WriteSysctl(conf+"/accept_dad", "0"),
	)
}

// Attached tells whether Attach of this port was done to its end.
func (b *Bridge) Attached(p Port, netns string) (bool, error) {
	host, err := b.nl.LinkByName(p.Name)
	if isNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for %s: %w", p.Name, err)
	}
	if !b.isPort(host) || host.Attrs().Flags&net.FlagUp == 0 {
		return false, nil
	}
	complete := false
	err = inNamespace(netns, func(h *netlink.Handle) error {
		eth, err := h.LinkByName(PodInterface)
		if isNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if eth.Attrs().ParentIndex != host.Attrs().Index || eth.Attrs().HardwareAddr.String() != MAC(p.Addrs[0]).String() {
			return nil
		}
		// The routes are the last step of Attach.
		routes, err := h.RouteList(eth, netlink.FAMILY_ALL)
		complete = err == nil
		for _, a := range p.Addrs {
			gateway := b.gateway(a).Addr().AsSlice()
			complete = complete && slices.ContainsFunc(routes, func(r netlink.Route) bool {
				return (r.Dst == nil || r.Dst.IP.IsUnspecified()) && r.Gw.Equal(gateway)
			})
		}
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return complete, err
}

// Adopt gives an attached port to another owner, and reports whether it is a port
// of the bridge at all, and up.
func (b *Bridge) Adopt(p Port) (bool, error) {
	link, err := b.nl.LinkByName(p.Name)
	if isNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for %s: %w", p.Name, err)
	}
	if !b.isPort(link) || link.Attrs().OperState != netlink.OperUp {
		return false, nil
	}
	if err := b.nl.LinkSetAlias(link, p.Alias); err != nil {
		return false, fmt.Errorf("set alias of %s: %w", p.Name, err)
	}
	return true, nil
}

// Detach cuts a port off: nothing that the pod's end sends arrives any more. The
// pair itself ends with the pod's namespace; waiting for the kernel to delete
// it here would take tens of milliseconds. A port that is gone is no error.
func (b *Bridge) Detach(name string) error { return b.onPort(name, "set down", b.nl.LinkSetDown) }

// Remove deletes a port and waits until the kernel has done so. A port that is
// gone is no error.
func (b *Bridge) Remove(name string) error { return b.onPort(name, "delete", b.nl.LinkDel) }

// RemoveAll is Remove for many ports at once: the kernel takes tens of
// milliseconds for each, most of which it waits.
func (b *Bridge) RemoveAll(names []string) error {
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			errs[i] = onOwnSocket(func(h *netlink.Handle) error { return b.onPort(name, "delete", h.LinkDel) })
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// onPort does something to a port unless it is gone.
func (b *Bridge) onPort(name, what string, do func(netlink.Link) error) error {
	link, err := b.nl.LinkByName(name)
	if err == nil {
		err = do(link)
	}
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("%s %s: %w", what, name, err)
	}
	return nil
}

// Ports lists the names of all ports of the bridge.
func (b *Bridge) Ports() ([]string, error) {
	bridge, err := b.find()
	if err != nil || bridge == nil {
		return nil, err
	}
	links, err := Whole(b.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var names []string
	for _, l := range links {
		if l.Attrs().MasterIndex == bridge.Attrs().Index {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, nil
}

// PodHas tells whether eth0 in the network namespace at the path netns has an
// address, whoever gave it. A namespace that is gone has none.
func PodHas(netns string, addr netip.Addr) (has bool, err error) {
	err = inNamespace(netns, func(h *netlink.Handle) error {
		eth, err := h.LinkByName(PodInterface)
		if isNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		addrs, err := h.AddrList(eth, netlink.FAMILY_ALL)
		has = slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return toPrefix(a.IPNet).Addr() == addr })
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return has, err
}

// LoopbackUp brings lo up in the network namespace at the path netns.
func LoopbackUp(netns string) error { return inNamespace(netns, loopbackUp) }

func loopbackUp(h *netlink.Handle) error {
	lo := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: 1}} // always 1
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// onOwnSocket runs f with a netlink socket of its own: requests on one socket
// wait for each other.
func onOwnSocket(f func(*netlink.Handle) error) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	return f(h)
}

// inNamespace runs f on a thread in the network namespace at the path netns,
// with a netlink socket there.
func inNamespace(netns string, f func(*netlink.Handle) error) error {
	return sys.InNetNamespace(netns, func() error {
		return onOwnSocket(f)
	})
}
