package network

import (
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"podstead/network/internal/bridge"
)

func TestBandwidth(t *testing.T) {
	lab := newLab(t)
	cfg := newConfig(t, "podtest0")
	n := newNetwork(t, cfg)
	pod := testPod(t, "slow", PortMapping{HostPort: 8080, ContainerPort: 80})
	pod.Annotations = map[string]string{ingressBandwidth: "1M", egressBandwidth: "2M"}
	setup(t, n, pod)
	serve(t, pod.Netns, "tcp", ":80", "slow")
	link := n.leases.get(pod.ID).Link
	ifb := "ifb" + strings.TrimPrefix(link, "veth")

	// Both ways are open, and slower than the packets that are sent at once.
	expect(t, lab.outside, "tcp", "192.0.2.1:8080", "slow sees 192.0.2.2")
	ip := n.leases.get(pod.ID).IPs[0].String()
	flood(t, "", ip+":9")
	flood(t, pod.Netns, "192.0.2.1:9")
	for name, rate := range map[string]uint64{link: 125_000, ifb: 250_000} {
		q := bucket(t, name)
		if q == nil || q.Rate != rate {
			t.Errorf("%s: %+v, want %d bytes per second", name, q, rate)
			continue
		}
		if q.Statistics == nil || q.Statistics.Queue == nil || q.Statistics.Queue.Overlimits == 0 {
			t.Errorf("%s was not at its limit", name)
		}
	}
	// Again, and by another process.
	again := restart(t, cfg)
	must(t, again.Reconcile(bg, []string{pod.ID}))
	setup(t, again, pod)
	expect(t, lab.outside, "tcp", "192.0.2.1:8080", "slow sees 192.0.2.2")

	teardown(t, n, pod)
	if bucket(t, ifb) != nil {
		t.Errorf("%s is left", ifb)
	}
	must(t, again.leases.remove(pod.ID))

	bad := testPod(t, "bad")
	for _, key := range []string{ingressBandwidth, egressBandwidth} {
		bad.Annotations = map[string]string{key: "12"}
		if _, err := n.Setup(bg, bad); err == nil || !strings.Contains(err.Error(), "annotation "+key+": 12 is not between 1k and 1P") {
			t.Errorf("got %v", err)
		}
	}
	for _, extreme := range []string{"1k", "1P"} {
		pod.Annotations = map[string]string{ingressBandwidth: extreme, egressBandwidth: extreme}
		setup(t, n, pod)
		teardown(t, n, pod)
	}
}

// A crash, or a lost lease, leaves no link behind.
func TestStrayLimitsAreRemoved(t *testing.T) {
	newLab(t)
	n := newNetwork(t, newConfig(t, "podtest0"))
	kept, lost := testPod(t, "kept"), testPod(t, "lost")
	for _, pod := range []*Pod{&kept, &lost} {
		pod.Annotations = map[string]string{egressBandwidth: "1M"}
		setup(t, n, *pod)
	}
	must(t, n.leases.remove(lost.ID))
	must(t, n.Reconcile(bg, []string{kept.ID}))
	ifbs := 0
	all, err := bridge.Whole(netlink.LinkList)
	must(t, err)
	for _, l := range all {
		if l.Type() == "ifb" {
			ifbs++
		}
	}
	if ifbs != 1 || n.builtin.bridge.Limit(n.leases.get(kept.ID).Link, bridge.Limits{FromPod: 1e6}) != nil {
		t.Errorf("%d ifb links", ifbs)
	}
}

// flood sends packets from a namespace ("" is the host).
func flood(t *testing.T, netns, addr string) {
	t.Helper()
	in(t, netns, func() {
		c, err := net.Dial("udp", addr)
		must(t, err)
		defer c.Close()
		for range 1000 {
			c.Write(make([]byte, 1400)) // refused packets are reported by the next write
		}
	})
}

// bucket returns the token bucket of a link, nil if it has none.
func bucket(t *testing.T, name string) *netlink.Tbf {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil
	}
	all, err := netlink.QdiscList(link)
	must(t, err)
	for _, q := range all {
		if tbf, ok := q.(*netlink.Tbf); ok {
			return tbf
		}
	}
	return nil
}
