package nat

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

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
			_, err = h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filter)
			if !errors.Is(err, netlink.ErrDumpInterrupted) {
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

type flowFilter struct {
	ports []Port
	match func(Port, *netlink.ConntrackFlow) bool
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flowFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for _, p := range f.ports {
		if flow.Forward.Protocol == p.Protocol && flow.Forward.DstPort == p.HostPort &&
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
