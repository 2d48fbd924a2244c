package network

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"podstead/network/internal/nat"
)

// normalizePorts returns the mappings that have a host port, with protocols in
// capitals and "all addresses" as the zero Addr, and says by name what cannot
// be done.
func normalizePorts(ports []PortMapping) ([]PortMapping, error) {
	var norm []PortMapping
	for _, p := range ports {
		if p.HostPort == 0 {
			continue
		}
		p.Protocol = strings.ToUpper(p.Protocol)
		if p.Protocol == "" {
			p.Protocol = "TCP"
		}
		if _, err := protocolNumber(p.Protocol); err != nil {
			return nil, fmt.Errorf("host port %d: %w", p.HostPort, err)
		}
		if p.ContainerPort == 0 {
			return nil, fmt.Errorf("host port %d/%s: container port is 0", p.HostPort, p.Protocol)
		}
		p.HostIP = p.HostIP.Unmap()
		if p.HostIP.IsUnspecified() {
			p.HostIP = netip.Addr{}
		}
		norm = append(norm, p)
	}
	return norm, nil
}

func protocolNumber(name string) (uint8, error) {
	switch name {
	case "TCP":
		return unix.IPPROTO_TCP, nil
	case "UDP":
		return unix.IPPROTO_UDP, nil
	case "SCTP":
		return unix.IPPROTO_SCTP, nil
	}
	return 0, fmt.Errorf("protocol %q is not TCP, UDP or SCTP", name)
}

// natPorts translates normalized mappings for the table: one entry for each of
// the pod's addresses that a mapping leads to.
func natPorts(ports []PortMapping, pod []netip.Addr) []nat.Port {
	var out []nat.Port
	for _, p := range ports {
		for _, ip := range pod {
			if !p.HostIP.IsValid() || p.HostIP.Is4() == ip.Is4() {
				out = append(out, natPort(p, ip))
			}
		}
	}
	return out
}

func natPort(p PortMapping, pod netip.Addr) nat.Port {
	proto, _ := protocolNumber(p.Protocol) // checked by normalizePorts
	return nat.Port{Protocol: proto, HostIP: p.HostIP, HostPort: p.HostPort, PodIP: pod, PodPort: p.ContainerPort}
}

// portOwners knows who has which host port. It is not safe for concurrent use.
type portOwners map[portKey][]portOwner

type portKey struct {
	protocol string
	port     uint16
}

type portOwner struct {
	hostIP netip.Addr // zero: all
	podID  string
	pod    string // namespace/name
}

// take gives the host ports to a pod: all of them, or none and an error that
// names who has the first one that is taken.
func (o portOwners) take(ports []PortMapping, podID, pod string) error {
	for i, p := range ports {
		key := portKey{p.Protocol, p.HostPort}
		if other, taken := o.conflict(key, p.HostIP); taken {
			o.release(ports[:i], podID)
			if other.podID == podID {
				return fmt.Errorf("host port %s is asked for twice", portString(p))
			}
			return fmt.Errorf("host port %s is taken by pod %s (%s)", portString(p), other.pod, other.podID)
		}
		o[key] = append(o[key], portOwner{p.HostIP, podID, pod})
	}
	return nil
}

func (o portOwners) conflict(key portKey, hostIP netip.Addr) (portOwner, bool) {
	for _, other := range o[key] {
		if !other.hostIP.IsValid() || !hostIP.IsValid() || other.hostIP == hostIP {
			return other, true
		}
	}
	return portOwner{}, false
}

// release takes from a pod those of the ports that it has.
func (o portOwners) release(ports []PortMapping, podID string) {
	for _, p := range ports {
		key := portKey{p.Protocol, p.HostPort}
		var left []portOwner
		for _, other := range o[key] {
			if other.podID != podID || other.hostIP != p.HostIP {
				left = append(left, other)
			}
		}
		if o[key] = left; len(left) == 0 {
			delete(o, key)
		}
	}
}

func portString(p PortMapping) string {
	if p.HostIP.IsValid() {
		return fmt.Sprintf("%s/%s", netip.AddrPortFrom(p.HostIP, p.HostPort), p.Protocol)
	}
	return fmt.Sprintf("%d/%s", p.HostPort, p.Protocol)
}
