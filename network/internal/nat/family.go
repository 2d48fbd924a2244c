package nat

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// family is what the table has for one address family.
type family struct {
	subnets []netip.Prefix // of the pods
	ports   *nftables.Set  // any address of the host
	ipPorts *nftables.Set  // one address

	nfproto             byte
	addrLen             uint32 // of an address
	srcAddr, dstAddr    uint32 // offsets in the header
	loopback, multicast netip.Prefix
	icmp, redirect      byte // protocol, and the type of a redirect
}

var (
	anyIPv4 = netip.MustParsePrefix("0.0.0.0/0")
	anyIPv6 = netip.MustParsePrefix("::/0")
)

func newFamily(t *nftables.Table, subnets []netip.Prefix) *family {
	f := &family{
		subnets: subnets, nfproto: unix.NFPROTO_IPV4, addrLen: 4, srcAddr: 12, dstAddr: 16,
		loopback: netip.MustParsePrefix("127.0.0.0/8"), multicast: netip.MustParsePrefix("224.0.0.0/4"),
		icmp: unix.IPPROTO_ICMP, redirect: 5,
	}
	addr, suffix := nftables.TypeIPAddr, ""
	if subnets[0].Addr().Is6() {
		f = &family{
			subnets: subnets, nfproto: unix.NFPROTO_IPV6, addrLen: 16, srcAddr: 8, dstAddr: 24,
			loopback: netip.MustParsePrefix("::1/128"), multicast: netip.MustParsePrefix("ff00::/8"),
			icmp: unix.IPPROTO_ICMPV6, redirect: 137,
		}
		addr, suffix = nftables.TypeIP6Addr, "6"
	}
	newMap := func(name string, key ...nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{
			Table: t, Name: name + suffix, IsMap: true, Concatenation: true, KeyByteOrder: binaryutil.BigEndian,
			KeyType: nftables.MustConcatSetType(key...), DataType: nftables.MustConcatSetType(addr, nftables.TypeInetService),
		}
	}
	f.ports = newMap("host_ports", nftables.TypeInetProto, nftables.TypeInetService)
	f.ipPorts = newMap("host_ip_ports", addr, nftables.TypeInetProto, nftables.TypeInetService)
	return f
}

// elements encodes those of ports that are of this family for its two maps. Each
// field of a concatenation is padded to a multiple of four bytes.
func (f *family) elements(ports []Port) (anyIP, oneIP []nftables.SetElement) {
	for _, p := range ports {
		if p.PodIP.Is4() != f.subnets[0].Addr().Is4() {
			continue
		}
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

// decode reads the key of an element.
func (f *family) decode(key []byte, withIP bool) (p Port, ok bool) {
	if withIP {
		if len(key) < int(f.addrLen) {
			return p, false
		}
		p.HostIP, _ = netip.AddrFromSlice(key[:f.addrLen])
		key = key[f.addrLen:]
	}
	if len(key) < 6 {
		return p, false
	}
	p.Protocol, p.HostPort = key[0], binaryutil.BigEndian.Uint16(key[4:6])
	return p, true
}

// is guards every look at a header: the table's family is inet.
func (f *family) is() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.nfproto}},
	}
}

// address matches an address at an offset of the header.
func (f *family) address(offset uint32, op expr.CmpOp, p netip.Prefix) []expr.Any {
	ones := slices.Repeat([]byte{0xff}, int(f.addrLen))
	all, _ := netip.AddrFromSlice(ones)
	mask := netip.PrefixFrom(all, p.Bits()).Masked().Addr()
	return []expr.Any{
		&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.addrLen, DestRegister: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: f.addrLen, Mask: mask.AsSlice(), Xor: make([]byte, f.addrLen)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Addr().AsSlice()},
	}
}

func (f *family) from(op expr.CmpOp, p netip.Prefix) []expr.Any { return f.address(f.srcAddr, op, p) }
func (f *family) to(op expr.CmpOp, p netip.Prefix) []expr.Any   { return f.address(f.dstAddr, op, p) }

// notToPods matches what is for no pod of the bridge.
func (f *family) notToPods() (all []expr.Any) {
	for _, s := range f.subnets {
		all = append(all, f.to(expr.CmpOpNeq, s)...)
	}
	return all
}

// routable leaves ::1 out: unlike for 127.0.0.0/8, the kernel cannot be made to
// route what comes from there, and a client would wait instead of being refused.
func (f *family) routable() []expr.Any {
	if f.nfproto == unix.NFPROTO_IPV4 {
		return nil
	}
	return f.to(expr.CmpOpNeq, f.loopback)
}

func (f *family) icmpRedirect() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.icmp}},
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1, DestRegister: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.redirect}},
	}
}

// The fields of a concatenated key lie in consecutive 32-bit registers; register
// 1 (16 bytes) is the same as 8 to 11 (4 bytes each).
const reg32 = unix.NFT_REG32_00

// offsetDstPort is that of the destination port in TCP, UDP and SCTP.
const offsetDstPort = 2

func (f *family) dnatByAddress() []expr.Any {
	next := uint32(reg32) + f.addrLen/4
	return append([]expr.Any{
		&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: f.dstAddr, Len: f.addrLen, DestRegister: 1},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: next},
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: offsetDstPort, Len: 2, DestRegister: next + 1},
	}, f.dnat(f.ipPorts)...)
}

func (f *family) dnatByPort() []expr.Any {
	return append([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: offsetDstPort, Len: 2, DestRegister: reg32 + 1},
	}, f.dnat(f.ports)...)
}

func (f *family) dnat(m *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.nfproto), RegAddrMin: 1, RegProtoMin: reg32 + f.addrLen/4, Specified: true},
	}
}
