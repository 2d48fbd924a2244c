package network

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"podstead/sys"
)

func TestPodsReachEachOtherAndTheHost(t *testing.T) {
	lab := newLab(t)
	n := newNetwork(t, newConfig(t, "podtest0"))
	a, b := testPod(t, "a"), testPod(t, "b")
	ipA, ipB := setup(t, n, a), setup(t, n, b)
	serve(t, b.Netns, "tcp", ":80", "b")
	serve(t, b.Netns, "udp", ":53", "b")
	serve(t, a.Netns, "tcp", "127.0.0.1:81", "a")
	serve(t, "", "tcp", ":8000", "host")
	serve(t, lab.outside, "tcp", ":8000", "outside")
	gateway := n.builtin.subnets[0].Addr().Next().String()

	expect(t, a.Netns, "tcp", ipB.String()+":80", "b sees "+ipA.String())
	expect(t, a.Netns, "udp", ipB.String()+":53", "b sees "+ipA.String())
	expect(t, a.Netns, "tcp", "127.0.0.1:81", "a sees 127.0.0.1")
	expect(t, "", "tcp", ipB.String()+":80", "b sees "+gateway)
	expect(t, a.Netns, "tcp", gateway+":8000", "host sees "+ipA.String())
	expect(t, a.Netns, "tcp", hostIP.String()+":8000", "host sees "+ipA.String())
	expect(t, a.Netns, "tcp", outsideIP.String()+":8000", "outside sees "+hostIP.String())

	teardown(t, n, b)
	if _, err := n.Setup(context.Background(), Pod{ID: "x", Netns: "/nonexistent"}); err == nil {
		t.Error("Setup with a namespace that is not there succeeded")
	}
}

// What a pod sends first arrives: it asks for its gateway once. A question that
// is lost, for the bridge does not forward yet, is asked again a second later.
func TestFirstPacketArrives(t *testing.T) {
	newLab(t)
	cfg := newConfig(t, "podtest0")
	cfg.Subnets = prefixes("10.9.0.0/24") // with IPv6 a pod speaks by itself
	n := newNetwork(t, cfg)
	setup(t, n, testPod(t, "first"))
	gateway := n.builtin.subnets[0].Addr().Next().String()
	serve(t, "", "udp", gateway+":9", "host")
	for i := range 20 {
		pod := testPod(t, fmt.Sprint("pod", i))
		ip := setup(t, n, pod)
		expect(t, pod.Netns, "udp", gateway+":9", "host sees "+ip.String())
		in(t, pod.Netns, func() {
			eth, err := netlink.LinkByName("eth0")
			must(t, err)
			if sent := eth.Attrs().Statistics.TxPackets; sent > 2 {
				t.Errorf("pod %d sent %d packets: one question and one packet were enough", i, sent)
			}
		})
	}
}

// The cluster's subnet for the node counts as long as no pod is connected.
func TestPodSubnets(t *testing.T) {
	newLab(t)
	cfg := newConfig(t, "podtest0")
	n := newNetwork(t, cfg)
	set := func(subnets ...string) error {
		var all []netip.Prefix
		for _, s := range subnets {
			all = append(all, netip.MustParsePrefix(s))
		}
		return n.SetPodSubnets(all)
	}
	must(t, set("10.60.0.0/24", "fd00::/64"))
	a := testPod(t, "a")
	if r, err := n.Setup(bg, a); err != nil || fmt.Sprint(r.IPs) != "[10.60.0.2 fd00::2]" {
		t.Errorf("got %v, %v", r.IPs, err)
	}
	must(t, set("10.61.0.0/24"))
	if ip := setup(t, n, testPod(t, "b")); ip.String() != "10.60.0.3" {
		t.Errorf("got %s", ip)
	}
	must(t, n.Reconcile(context.Background(), nil))
	must(t, set("10.61.0.0/24"))
	if ip := setup(t, n, testPod(t, "c")); ip.String() != "10.61.0.2" {
		t.Errorf("got %s", ip)
	}
	addrs, err := netlink.AddrList(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "podtest0"}}, netlink.FAMILY_V4)
	must(t, err)
	if len(addrs) != 1 || addrs[0].IPNet.String() != "10.61.0.1/24" {
		t.Errorf("addresses of the bridge: %v", addrs)
	}
	if rules := nft(t, "list", "table", "inet", "podtest0"); strings.Contains(rules, "10.60.") {
		t.Errorf("rules of the old subnet:\n%s", rules)
	}
	must(t, n.Reconcile(context.Background(), nil))
	for _, bad := range [][]string{{"10.62.0.0/32"}, {"10.62.0.0/24", "10.63.0.0/24"}, {}} {
		if set(bad...) == nil {
			t.Errorf("%v was taken", bad)
		}
	}
	// The cluster says it once: a restart, and even a Destroy, do not lose it.
	must(t, set("fd00:1::/112"))
	must(t, n.Destroy(bg))
	again := restart(t, cfg)
	if r, err := again.Setup(bg, testPod(t, "d")); err != nil || fmt.Sprint(r.IPs) != "[fd00:1::2]" {
		t.Errorf("got %v, %v", r.IPs, err)
	}
	must(t, again.Reconcile(bg, nil))
	must(t, again.Destroy(bg))
}

// Docker and others drop what is forwarded by default; we can only say so.
func TestWarnsOfFirewallsInTheWay(t *testing.T) {
	newLab(t)
	for _, c := range []struct{ command, want string }{
		{"", ""},
		{"iptables -P FORWARD DROP", `chain="chain ip filter FORWARD"`},
		{"iptables-legacy -P FORWARD DROP", `chain="iptables-legacy chain FORWARD"`},
		{"iptables-legacy -A FORWARD -j ACCEPT", ""},
		{"nft add table inet fw; nft add chain inet fw forwarding '{type filter hook forward priority 0; policy drop;}'", `chain="chain inet fw forwarding"`},
		{"nft add table inet fw; nft add chain inet fw in '{type filter hook input priority 0; policy drop;}'", ""},
	} {
		t.Run(c.command, func(t *testing.T) {
			defer run("sh", "-c", "iptables-legacy -P FORWARD ACCEPT; iptables-legacy -F; nft flush ruleset")
			if c.command != "" {
				if err := run("sh", "-c", c.command); err != nil {
					t.Skip(err)
				}
			}
			var out bytes.Buffer
			cfg := newConfig(t, "podtest0")
			cfg.Log = slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn}))
			n, err := New(cfg)
			must(t, err)
			defer n.Close()
			pod := testPod(t, "a")
			setup(t, n, pod)
			teardown(t, n, pod)
			must(t, n.Destroy(context.Background()))
			if got := out.String(); !strings.Contains(got, c.want) || c.want == "" && got != "" {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// BenchmarkPod prints the median times of Setup and Teardown, without and with a
// host port; the namespace is made and ended outside of them.
func BenchmarkPod(b *testing.B) {
	needRoot(b)
	for name, ports := range map[string][]PortMapping{
		"plain": nil, "hostPort": {{HostPort: 8080, ContainerPort: 80}}, "udpHostPort": {{Protocol: "UDP", HostPort: 53, ContainerPort: 53}},
	} {
		b.Run(name, func(b *testing.B) {
			n := newNetwork(b, newConfig(b, "podbench0"))
			setup(b, n, testPod(b, "first"))
			var ups, downs []float64
			for b.Loop() {
				dir := b.TempDir()
				must(b, sys.NewNamespaces(dir, []string{sys.NetNamespace}, nil))
				pod := Pod{ID: "id", Namespace: "default", Name: "pod", Netns: filepath.Join(dir, sys.NetNamespace), Ports: ports}
				start := time.Now()
				setup(b, n, pod)
				up := time.Now()
				teardown(b, n, pod)
				downs = append(downs, float64(time.Since(up).Microseconds())/1000)
				ups = append(ups, float64(up.Sub(start).Microseconds())/1000)
				must(b, sys.ReleaseNamespace(pod.Netns))
			}
			slices.Sort(ups)
			slices.Sort(downs)
			b.ReportMetric(ups[len(ups)/2], "ms/Setup")
			b.ReportMetric(downs[len(downs)/2], "ms/Teardown")
			b.ReportMetric(0, "ns/op")
		})
	}
}
