package ipam

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
)

// chosenBits is the size of a subnet that is chosen: 1021 pods.
const chosenBits = 22

// candidates are the private ranges (RFC 1918) that a subnet is chosen from, in
// order of preference. They avoid the defaults of others: 10.244/16 (flannel),
// 10.42/16 (k3s), 10.85/16 (CRI-O), 10.88/16 (podman), 172.17/16 (Docker),
// 192.168.0/17 (homes).
var candidates = [...]string{"10.77.0.0/16", "10.147.0.0/16", "172.29.0.0/16", "192.168.128.0/17", "10.200.0.0/14"}

// Choose returns a private subnet that overlaps none of taken: the host's
// routes and addresses, the subnets of other instances.
func Choose(taken []netip.Prefix) (netip.Prefix, error) {
	for _, c := range candidates {
		within := netip.MustParsePrefix(c)
		for s := netip.PrefixFrom(within.Addr(), chosenBits); within.Contains(s.Addr()); s = following(s) {
			if !overlapsAny(s, taken) {
				return s, nil
			}
		}
	}
	return netip.Prefix{}, fmt.Errorf("no free private subnet among %v: set one", candidates)
}

// Choose6 returns a unique local IPv6 subnet (RFC 4193) that overlaps none of
// taken. Its global ID comes from seed, which names the instance among all in
// the world: the same instance gets the same subnet again.
func Choose6(seed string, taken []netip.Prefix) netip.Prefix {
	for n := 0; ; n++ {
		id := sha256.Sum256(fmt.Appendf(nil, "%s %d", seed, n))
		b := [16]byte{0: 0xfd}
		copy(b[1:6], id[:5])
		if s := netip.PrefixFrom(netip.AddrFrom16(b), 64); !overlapsAny(s, taken) || n == maxTries {
			return s
		}
	}
}

// maxTries is never reached by a host that has not routed half of fd00::/8.
const maxTries = 100

func overlapsAny(s netip.Prefix, taken []netip.Prefix) bool {
	for _, t := range taken {
		if t.Overlaps(s) {
			return true
		}
	}
	return false
}

// following returns the subnet of the same size right after s.
func following(s netip.Prefix) netip.Prefix {
	b := s.Addr().As4()
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	n += 1 << (32 - s.Bits())
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}), s.Bits())
}
