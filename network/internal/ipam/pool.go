// Package ipam decides which addresses pods get: a pool of the addresses of
// one subnet, or of an IPv4 and an IPv6 one side by side, and the choice of
// subnets that are free on a host. It is pure: what survives a crash are the
// leases that package network writes, from which a pool is filled again.
package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// ExhaustedError says that every address of a subnet is in use.
type ExhaustedError struct {
	Subnets []netip.Prefix
	InUse   int
}

func (e *ExhaustedError) Error() string {
	return fmt.Sprintf("no free address in %s: all %d are in use", Join(e.Subnets), e.InUse)
}

// Join writes subnets as pod CIDRs are written.
func Join(subnets []netip.Prefix) string {
	texts := make([]string, len(subnets))
	for i, s := range subnets {
		texts[i] = s.String()
	}
	return strings.Join(texts, ",")
}

// Pool hands out places in its subnets: the nth address of each. So a pod's
// IPv6 address follows from its IPv4 one, and there is one thing to keep account
// of. The place that was released longest ago comes first: who still has a stale
// idea of an address (a connection table, a neighbour cache, a client) gets as
// long as possible to forget it. It is not safe for concurrent use.
type Pool struct {
	subnets  []netip.Prefix
	last     uint32
	known    map[uint32]bool // every place handed out so far; true: in use
	inUse    int
	released []uint32 // oldest first
	fresh    uint32   // next place to look at that was never handed out
	begin    uint32   // where fresh started
	wrapped  bool
}

const (
	gateway = 1 // the bridge's place
	first   = 2

	maxBits4, maxBits6 = 30, 126 // leave room for the gateway and a pod
	minBits4, minBits6 = 8, 16

	// maxPlaces bounds what is kept account of in an IPv6 subnet.
	maxPlaces = 1 << 24
)

// NewPool makes a pool of all places of subnets, except for the networks' own,
// the gateway and the broadcast address. Places are handed out from the one that
// follows after on; the zero Addr begins at the first.
func NewPool(subnets []netip.Prefix, after netip.Addr) (*Pool, error) {
	if err := Check(subnets); err != nil {
		return nil, err
	}
	p := &Pool{known: map[uint32]bool{}, last: maxPlaces, begin: first}
	for _, s := range subnets {
		p.subnets = append(p.subnets, s.Masked())
		bits := s.Addr().BitLen() - s.Bits()
		if bits < 32 {
			p.last = min(p.last, uint32(1)<<bits-1)
		}
		if s.Addr().Is4() {
			p.last = min(p.last, uint32(1)<<bits-2)
		}
	}
	if place, ok := p.place([]netip.Addr{after}); ok && place < p.last {
		p.begin = place + 1
	}
	p.fresh = p.begin
	return p, nil
}

// Check tells why subnets cannot serve a pod network. One of a family is enough,
// and two of one family are too many.
func Check(subnets []netip.Prefix) error {
	if len(subnets) == 0 {
		return errors.New("no subnet")
	}
	for i, s := range subnets {
		lo, hi := minBits6, maxBits6
		if s.Addr().Is4() {
			lo, hi = minBits4, maxBits4
		}
		switch a := s.Addr(); {
		case !s.IsValid() || a.Is4In6() || a.Zone() != "":
			return fmt.Errorf("subnet %s is not valid", s)
		case s.Bits() > hi || s.Bits() < lo:
			return fmt.Errorf("subnet %s: its length must be between /%d and /%d", s, lo, hi)
		case a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a.IsLinkLocalUnicast():
			return fmt.Errorf("subnet %s is not for unicast", s)
		}
		for _, other := range subnets[:i] {
			if other.Addr().Is4() == s.Addr().Is4() {
				return fmt.Errorf("subnets %s and %s are of one address family", other, s)
			}
		}
	}
	return nil
}

// Gateway is the address of the bridge: the first one of the subnet.
func Gateway(subnet netip.Prefix) netip.Addr { return at(subnet.Masked(), gateway) }

// at is the nth address of a masked subnet.
func at(subnet netip.Prefix, n uint32) netip.Addr {
	b := subnet.Addr().As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+uint64(n))
	return netip.AddrFrom16(b).Unmap()
}

func (p *Pool) addrs(place uint32) []netip.Addr {
	addrs := make([]netip.Addr, len(p.subnets))
	for i, s := range p.subnets {
		addrs[i] = at(s, place)
	}
	return addrs
}

// place finds the place that addresses are at. Not all of its addresses need be
// there, but those that are must be of it.
func (p *Pool) place(addrs []netip.Addr) (place uint32, ok bool) {
	for i, a := range addrs {
		j := slices.IndexFunc(p.subnets, func(s netip.Prefix) bool { return s.Contains(a) })
		if j < 0 {
			return 0, false
		}
		base, b := p.subnets[j].Addr().As16(), a.As16()
		n := binary.BigEndian.Uint64(b[8:]) - binary.BigEndian.Uint64(base[8:])
		if n < first || n > uint64(p.last) || i > 0 && n != uint64(place) || at(p.subnets[j], uint32(n)) != a {
			return 0, false
		}
		place = uint32(n)
	}
	return place, len(addrs) > 0
}

// Take marks the place of addresses as in use that a lease says so of. It is an
// error if somebody else has it or it is not of these subnets.
func (p *Pool) Take(addrs []netip.Addr) error {
	place, ok := p.place(addrs)
	if !ok {
		return fmt.Errorf("addresses %v are not of one place in %s", addrs, Join(p.subnets))
	}
	if p.known[place] {
		return fmt.Errorf("addresses %v are in use already", addrs)
	}
	p.take(place)
	return nil
}

func (p *Pool) take(place uint32) {
	p.known[place] = true
	p.inUse++
}

// Get hands out an address of each subnet, in their order.
func (p *Pool) Get() ([]netip.Addr, error) {
	for !p.wrapped {
		place := p.fresh
		p.advance()
		if _, known := p.known[place]; !known {
			p.take(place)
			return p.addrs(place), nil
		}
	}
	for len(p.released) > 0 {
		place := p.released[0]
		p.released = p.released[1:]
		if !p.known[place] { // not taken by name meanwhile
			p.take(place)
			return p.addrs(place), nil
		}
	}
	return nil, &ExhaustedError{Subnets: p.subnets, InUse: p.inUse}
}

func (p *Pool) advance() {
	if p.fresh++; p.fresh > p.last {
		p.fresh = first
	}
	p.wrapped = p.fresh == p.begin
}

// Put takes addresses back; those that are not in use are left alone.
func (p *Pool) Put(addrs []netip.Addr) {
	place, ok := p.place(addrs)
	if !ok || !p.known[place] {
		return
	}
	p.known[place] = false
	p.inUse--
	p.released = append(p.released, place)
}

// InUse is how many places are handed out.
func (p *Pool) InUse() int { return p.inUse }
