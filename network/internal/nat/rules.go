package nat

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

var (
	loopback  = netip.MustParsePrefix("127.0.0.0/8")
	multicast = netip.MustParsePrefix("224.0.0.0/4")
)

// Offsets in the headers of IPv4 and of TCP, UDP and SCTP.
const (
	offsetSrcAddr = 12
	offsetDstAddr = 16
	offsetDstPort = 2
)

const ipsDstNAT = 1 << 5 // IPS_DST_NAT in a connection's status

const icmpRedirect = 5

// addChains adds the chains and rules of the package comment.
func (t *Table) addChains(c *nftables.Conn) {
	base := func(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: t.table, Type: typ, Hooknum: hook, Priority: &prio})
	}
	rule := func(chain *nftables.Chain, parts ...[]expr.Any) {
		r := &nftables.Rule{Table: t.table, Chain: chain}
		for _, p := range parts {
			r.Exprs = append(r.Exprs, p...)
		}
		c.AddRule(r)
	}

	guard := base("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityRaw)
	rule(guard, t.from(), ipv4(), address(offsetDstAddr, expr.CmpOpEq, loopback), verdict(expr.VerdictDrop))
	rule(guard, t.from(), ipv4(), address(offsetSrcAddr, expr.CmpOpEq, loopback), verdict(expr.VerdictDrop))

	toPods := c.AddChain(&nftables.Chain{Name: "to_pods", Table: t.table})
	rule(toPods, ipv4(), t.dnatByAddress())
	rule(toPods, ipv4(), toLocal(), t.dnatByPort())

	jump := []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: toPods.Name}}
	rule(base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest), jump)
	rule(base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, *nftables.ChainPriorityNATDest), jump)

	post := base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource)
	// From 127.0.0.1 on the host, led to a pod: the pod must be able to answer.
	rule(post, t.to(expr.CmpOpEq), ipv4(), address(offsetSrcAddr, expr.CmpOpEq, loopback), masquerade(false))
	// From a pod by a host port to itself or another pod here: the answer must
	// come back by the host, which knows what the question was addressed to.
	rule(post, t.to(expr.CmpOpEq), ipv4(), address(offsetSrcAddr, expr.CmpOpEq, t.subnet), dnatted(), masquerade(false))
	// Out of the pod network. Random ports: two connections set up at once to
	// one destination otherwise race for the same one, and one packet is lost.
	rule(post, t.to(expr.CmpOpNeq), ipv4(), address(offsetSrcAddr, expr.CmpOpEq, t.subnet),
		address(offsetDstAddr, expr.CmpOpNeq, t.subnet), address(offsetDstAddr, expr.CmpOpNeq, multicast), masquerade(true))

	// A pod that reaches its neighbour by a host port must not be told of the
	// short way: it is right for that port only.
	redirects := base("redirects", nftables.ChainTypeFilter, nftables.ChainHookOutput, *nftables.ChainPriorityFilter)
	rule(redirects, t.to(expr.CmpOpEq), ipv4(), icmpType(icmpRedirect), verdict(expr.VerdictDrop))
}

func (t *Table) from() []expr.Any { return ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, t.bridge) }

func (t *Table) to(op expr.CmpOp) []expr.Any { return ifname(expr.MetaKeyOIFNAME, op, t.bridge) }

func ifname(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: data},
	}
}

// ipv4 guards every look at an IPv4 header: the table's family is inet.
func ipv4() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
	}
}

func address(offset uint32, op expr.CmpOp, p netip.Prefix) []expr.Any {
	mask := netip.PrefixFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), p.Bits()).Masked().Addr()
	return []expr.Any{
		&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4, DestRegister: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask.AsSlice(), Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Addr().AsSlice()},
	}
}

// toLocal matches what is addressed to the host itself.
func toLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

func dnatted() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(ipsDstNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func icmpType(typ byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMP}},
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1, DestRegister: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{typ}},
	}
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

func masquerade(random bool) []expr.Any { return []expr.Any{&expr.Masq{FullyRandom: random}} }

// The fields of a concatenated key lie in consecutive 32-bit registers; register
// 1 (16 bytes) is the same as 8 to 11 (4 bytes each).
const reg32 = unix.NFT_REG32_00

func (t *Table) dnatByAddress() []expr.Any {
	return append([]expr.Any{
		&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: offsetDstAddr, Len: 4, DestRegister: 1},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg32 + 1},
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: offsetDstPort, Len: 2, DestRegister: reg32 + 2},
	}, dnat(t.ipPort)...)
}

func (t *Table) dnatByPort() []expr.Any {
	return append([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: offsetDstPort, Len: 2, DestRegister: reg32 + 1},
	}, dnat(t.ports)...)
}

func dnat(m *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: reg32 + 1, Specified: true},
	}
}
