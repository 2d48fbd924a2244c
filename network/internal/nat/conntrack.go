package nat

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// CheckSCTP tells if the kernel cannot lead SCTP to another address: its
// connection tracking must know the protocol, which can be left out of it.
func CheckSCTP() error {
	const dir = "/proc/sys/net/netfilter/"
	if _, err := os.Stat(dir + "nf_conntrack_max"); err != nil {
		return nil // cannot be told
	}
	if _, err := os.Stat(dir + "nf_conntrack_sctp_timeout_established"); err != nil {
		return errors.New("the kernel's connection tracking has no SCTP (CONFIG_NF_CT_PROTO_SCTP)")
	}
	return nil
}

// ForgetAdded makes the kernel forget connections that began before host ports
// were added: a UDP client that sends on without a pause would otherwise stay
// what it was, a client of the host itself, for NAT is decided with the first
// packet of a connection. TCP has no such clients.
func (t *Table) ForgetAdded(ports []Port) error {
	return t.forget(ports, func(p Port, f *netlink.ConntrackFlow) bool {
		translated := !f.Forward.DstIP.Equal(f.Reverse.SrcIP) || !f.Forward.SrcIP.Equal(f.Reverse.DstIP)
		return !translated
	})
}

// ForgetRemoved makes the kernel forget connections to the pod that had these
// host ports, whose address another pod gets some day.
func (t *Table) ForgetRemoved(ports []Port) error {
	return t.forget(ports, func(p Port, f *netlink.ConntrackFlow) bool {
		return f.Reverse.SrcIP.Equal(p.PodIP.AsSlice()) && f.Reverse.SrcPort == p.PodPort
	})
}

// forget removes those connections to UDP host ports which match.
func (t *Table) forget(ports []Port, match func(Port, *netlink.ConntrackFlow) bool) error {
	filter := flowFilter{match: match}
	for _, p := range ports {
		if p.Protocol == unix.IPPROTO_UDP {
			filter.ports = append(filter.ports, p)
		}
	}
	if len(filter.ports) == 0 {
		return nil
	}
	err := t.conntrack(func(h *netlink.Handle) (err error) {
		// The kernel may say that the list changed while it was read. What is
		// looked for was there before; a second look finds what the first missed.
		for range 3 {
			if err = t.forgetOnce(h, filter); !errors.Is(err, netlink.ErrDumpInterrupted) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("forget connections to UDP host ports: %w", err)
	}
	return nil
}

// forgetOnce reads the table once for both families, for that takes the kernel
// its time, and once more for those in which something is to be forgotten, which
// is seldom.
func (t *Table) forgetOnce(h *netlink.Handle, filter flowFilter) error {
	flows, err := h.ConntrackTableList(netlink.ConntrackTable, unix.AF_UNSPEC)
	if err != nil {
		return err
	}
	for _, f := range t.families {
		if !slices.ContainsFunc(flows, func(flow *netlink.ConntrackFlow) bool {
			return flow.FamilyType == f.nfproto && filter.MatchConntrackFlow(flow)
		}) {
			continue
		}
		if _, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(f.nfproto), filter); err != nil {
			return err
		}
	}
	return nil
}

type flowFilter struct {
	ports []Port
	match func(Port, *netlink.ConntrackFlow) bool
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flowFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for _, p := range f.ports {
		if p.PodIP.Is4() == (flow.Forward.DstIP.To4() != nil) && flow.Forward.Protocol == p.Protocol && flow.Forward.DstPort == p.HostPort &&
			(!p.HostIP.IsValid() || toAddr(flow.Forward.DstIP) == p.HostIP) && f.match(p, flow) {
			return true
		}
	}
	return false
}

func toAddr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
