// Package ipam decides which addresses pods get: a pool of the addresses of
// one subnet, and the choice of a subnet that is free on a host. It is pure:
// what survives a crash are the leases that package network writes, from which
// a pool is filled again.
package ipam

import (
	"fmt"
	"net/netip"
)

// ExhaustedError says that every address of a subnet is in use.
type ExhaustedError struct {
	Subnet netip.Prefix
	InUse  int
}

func (e *ExhaustedError) Error() string {
	return fmt.Sprintf("no free address in %s: all %d are in use", e.Subnet, e.InUse)
}

// Pool hands out the addresses of a subnet, the one that was released longest
// ago last: who still has a stale idea of an address (a connection table, a
// neighbour cache, a client) gets as long as possible to forget it. It is not
// safe for concurrent use.
type Pool struct {
	subnet   netip.Prefix
	known    map[netip.Addr]bool // every address handed out so far; true: in use
	inUse    int
	released []netip.Addr // oldest first
	fresh    netip.Addr   // next address to look at that was never handed out
	begin    netip.Addr   // where fresh started
	wrapped  bool
}

// maxBits is the longest prefix that leaves room for the gateway and a pod.
const maxBits = 30

// NewPool makes a pool of all addresses of subnet, except for the network's
// own, the gateway and the broadcast address. Addresses are handed out from
// the one that follows after on; the zero Addr begins at the first.
func NewPool(subnet netip.Prefix, after netip.Addr) (*Pool, error) {
	if err := Check(subnet); err != nil {
		return nil, err
	}
	p := &Pool{subnet: subnet.Masked(), known: map[netip.Addr]bool{}}
	p.begin = p.first()
	if p.Allocatable(after) && p.Allocatable(after.Next()) {
		p.begin = after.Next()
	}
	p.fresh = p.begin
	return p, nil
}

// Check tells why a subnet cannot serve a pod network.
func Check(subnet netip.Prefix) error {
	switch {
	case !subnet.IsValid() || !subnet.Addr().Is4():
		return fmt.Errorf("subnet %s is not an IPv4 prefix", subnet)
	case subnet.Bits() > maxBits || subnet.Bits() < 8:
		return fmt.Errorf("subnet %s: its length must be between /8 and /%d", subnet, maxBits)
	case subnet.Addr().IsLoopback() || subnet.Addr().IsMulticast() || subnet.Addr().IsUnspecified():
		return fmt.Errorf("subnet %s is not for unicast", subnet)
	}
	return nil
}

// Gateway is the address of the bridge: the first one of the subnet.
func Gateway(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

func (p *Pool) first() netip.Addr { return Gateway(p.subnet).Next() }

// Allocatable tells whether the pool may hand out addr at all.
func (p *Pool) Allocatable(addr netip.Addr) bool {
	return addr.IsValid() && p.subnet.Contains(addr) && !addr.Less(p.first()) && p.subnet.Contains(addr.Next())
}

// Take marks an address as in use that a lease says so of. It is an error if
// somebody else has it or it is not of this subnet.
func (p *Pool) Take(addr netip.Addr) error {
	if !p.Allocatable(addr) {
		return fmt.Errorf("address %s is not one of subnet %s", addr, p.subnet)
	}
	if p.known[addr] {
		return fmt.Errorf("address %s is in use already", addr)
	}
	p.known[addr] = true
	p.inUse++
	return nil
}

// Get hands out an address.
func (p *Pool) Get() (netip.Addr, error) {
	for !p.wrapped {
		addr := p.fresh
		p.advance()
		if _, known := p.known[addr]; !known {
			return addr, p.Take(addr)
		}
	}
	for len(p.released) > 0 {
		addr := p.released[0]
		p.released = p.released[1:]
		if !p.known[addr] { // not taken by name meanwhile
			return addr, p.Take(addr)
		}
	}
	return netip.Addr{}, &ExhaustedError{Subnet: p.subnet, InUse: p.inUse}
}

func (p *Pool) advance() {
	p.fresh = p.fresh.Next()
	if !p.Allocatable(p.fresh) {
		p.fresh = p.first()
	}
	p.wrapped = p.fresh == p.begin
}

// Put takes an address back; one that is not in use is left alone.
func (p *Pool) Put(addr netip.Addr) {
	if !p.known[addr] {
		return
	}
	p.known[addr] = false
	p.inUse--
	p.released = append(p.released, addr)
}

// InUse is how many addresses are handed out.
func (p *Pool) InUse() int { return p.inUse }
