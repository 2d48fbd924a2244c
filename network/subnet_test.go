package network

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// bridgeAddrs are the IPv4 addresses of the bridge.
func bridgeAddrs(t *testing.T, name string) (all []string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	must(t, err)
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	must(t, err)
	for _, a := range addrs {
		all = append(all, a.IPNet.String())
	}
	slices.Sort(all)
	return all
}

// TestSubnetIsChanged while a pod is connected: that one keeps its address, its
// host port and its way out, new ones get others, and all reach each other. When
// the old one is gone, so is the old subnet.
func TestSubnetIsChanged(t *testing.T) {
	lab := newLab(t)
	cfg := newConfig(t, "podtest0")
	cfg.Subnets = prefixes("10.8.0.0/24", "fd00:8::/64")
	n := newNetwork(t, cfg)
	old := testPod(t, "old", PortMapping{HostPort: 8080, ContainerPort: 80})
	oldIP := setup(t, n, old)
	serve(t, old.Netns, "tcp", ":80", "old")
	serve(t, lab.outside, "tcp", ":8000", "outside")

	cfg.Subnets = prefixes("10.9.0.0/24")
	n = restart(t, cfg)
	must(t, n.Reconcile(bg, []string{old.ID}))
	pod := testPod(t, "new", PortMapping{HostPort: 8081, ContainerPort: 80})
	ip := setup(t, n, pod)
	if !cfg.Subnets[0].Contains(ip) {
		t.Errorf("the new pod has %s", ip)
	}
	serve(t, pod.Netns, "tcp", ":80", "new")
	if again := setup(t, n, old); again != oldIP {
		t.Errorf("the old pod had %s and has %s", oldIP, again)
	}
	expect(t, old.Netns, "tcp", ip.String()+":80", "new sees "+oldIP.String())
	expect(t, pod.Netns, "tcp", oldIP.String()+":80", "old sees "+ip.String())
	for _, p := range []Pod{old, pod} {
		expect(t, p.Netns, "tcp", outsideIP.String()+":8000", "outside sees "+hostIP.String())
	}
	expect(t, lab.outside, "tcp", hostIP.String()+":8080", "old sees "+outsideIP.String())
	expect(t, lab.outside, "tcp", hostIP.String()+":8081", "new sees "+outsideIP.String())
	if got := bridgeAddrs(t, cfg.Name); !slices.Equal(got, []string{"10.8.0.1/24", "10.9.0.1/24"}) {
		t.Errorf("the bridge has %v", got)
	}

	teardown(t, n, old)
	n = restart(t, cfg)
	must(t, n.Reconcile(bg, []string{pod.ID}))
	if got := bridgeAddrs(t, cfg.Name); !slices.Equal(got, []string{"10.9.0.1/24"}) {
		t.Errorf("without the old pod the bridge has %v", got)
	}
	if table := nft(t, "list", "table", "inet", cfg.Name); strings.Contains(table, "10.8.0.0") || !strings.Contains(table, "10.9.0.0/24") {
		t.Errorf("without the old pod the table is\n%s", table)
	}
	expect(t, lab.outside, "tcp", hostIP.String()+":8081", "new sees "+outsideIP.String())

	// Back again, while a pod of the last is there.
	cfg.Subnets = prefixes("10.8.0.0/24", "fd00:8::/64")
	n = restart(t, cfg)
	last := testPod(t, "last")
	if ip := setup(t, n, last); !cfg.Subnets[0].Contains(ip) {
		t.Errorf("the last pod has %s", ip)
	}
	if again := setup(t, n, pod); again != ip {
		t.Errorf("the pod had %s and has %s", ip, again)
	}
	teardown(t, n, pod)
	teardown(t, n, last)
}

// TestSubnetThatOverlaps that of connected pods is not taken before they are gone.
func TestSubnetThatOverlaps(t *testing.T) {
	newLab(t)
	cfg := newConfig(t, "podtest0")
	cfg.Subnets = prefixes("10.8.0.0/16")
	n := newNetwork(t, cfg)
	old := testPod(t, "old")
	oldIP := setup(t, n, old)
	cfg.Subnets = prefixes("10.8.1.0/24")
	n = restart(t, cfg)
	pod := testPod(t, "new")
	if ip := setup(t, n, pod); !netip.MustParsePrefix("10.8.0.0/24").Contains(ip) || ip == oldIP {
		t.Errorf("the pods have %s and %s", oldIP, ip)
	}
	teardown(t, n, old)
	teardown(t, n, pod)
	n = restart(t, cfg)
	if ip := setup(t, n, pod); !cfg.Subnets[0].Contains(ip) {
		t.Errorf("without others the pod has %s", ip)
	}
	teardown(t, n, pod)
}
