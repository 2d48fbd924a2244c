package nat

import (
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const ipsDstNAT = 1 << 5 // IPS_DST_NAT in a connection's status

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
	toPods := c.AddChain(&nftables.Chain{Name: "to_pods", Table: t.table})
	jump := []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: toPods.Name}}
	rule(base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest), jump)
	rule(base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, *nftables.ChainPriorityNATDest), jump)
	post := base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource)
	redirects := base("redirects", nftables.ChainTypeFilter, nftables.ChainHookOutput, *nftables.ChainPriorityFilter)

	for _, f := range t.families {
		rule(guard, t.from(), f.is(), f.to(expr.CmpOpEq, f.loopback), verdict(expr.VerdictDrop))
		rule(guard, t.from(), f.is(), f.from(expr.CmpOpEq, f.loopback), verdict(expr.VerdictDrop))

		rule(toPods, f.is(), f.dnatByAddress())
		rule(toPods, f.is(), f.routable(), toLocal(), f.dnatByPort())

		// From a loopback address of the host, led to a pod: the pod must be able
		// to answer.
		rule(post, t.to(expr.CmpOpEq), f.is(), f.from(expr.CmpOpEq, f.loopback), masquerade(false))
		// From a pod by a host port to itself or another pod here: the answer must
		// come back by the host, which knows what the question was addressed to.
		for _, s := range f.subnets {
			rule(post, t.to(expr.CmpOpEq), f.is(), f.from(expr.CmpOpEq, s), dnatted(), masquerade(false))
		}
		// Out of the pod network. Random ports: two connections set up at once to
		// one destination otherwise race for the same one, and one packet is lost.
		for _, s := range f.subnets {
			rule(post, t.to(expr.CmpOpNeq), f.is(), f.from(expr.CmpOpEq, s), f.notToPods(), f.to(expr.CmpOpNeq, f.multicast), masquerade(true))
		}

		// A pod that reaches its neighbour by a host port must not be told of the
		// short way: it is right for that port only.
		rule(redirects, t.to(expr.CmpOpEq), f.is(), f.icmpRedirect(), verdict(expr.VerdictDrop))
	}
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

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

func masquerade(random bool) []expr.Any { return []expr.Any{&expr.Masq{FullyRandom: random}} }
