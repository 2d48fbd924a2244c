package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// setupBoth connects a pod and returns its IPv4 and its IPv6 address.
func setupBoth(t *testing.T, n *Network, pod Pod) (v4, v6 netip.Addr) {
	t.Helper()
	r, err := n.Setup(bg, pod)
	must(t, err)
	if len(r.IPs) != 2 || !r.IPs[0].Is4() || !r.IPs[1].Is6() {
		t.Fatalf("addresses: %v", r.IPs)
	}
	return r.IPs[0], r.IPs[1]
}

func gateways(n *Network) (v4, v6 string) {
	s := n.builtin.subnets
	return s[0].Addr().Next().String(), s[1].Addr().Next().String()
}

// at writes an address and a port.
func at(ip any, port string) string { return net.JoinHostPort(fmt.Sprint(ip), port) }

func TestDualStack(t *testing.T) {
	lab := newLab(t)
	n := newNetwork(t, newConfig(t, "podtest0"))
	a, b := testPod(t, "a"), testPod(t, "b")
	ipA, ipA6 := setupBoth(t, n, a)
	_, ipB6 := setupBoth(t, n, b)
	if !ipA6.IsPrivate() {
		t.Errorf("%s is not a unique local address", ipA6)
	}
	serve(t, b.Netns, "tcp", ":80", "b")
	serve(t, b.Netns, "udp", "["+ipB6.String()+"]:53", "b")
	serve(t, "", "tcp", ":8000", "host")
	serve(t, lab.outside, "tcp", ":8000", "outside")
	_, gateway := gateways(n)

	expect(t, a.Netns, "tcp", at(ipB6, "80"), "b sees "+ipA6.String())
	expect(t, a.Netns, "udp", at(ipB6, "53"), "b sees "+ipA6.String())
	expect(t, "", "tcp", at(ipB6, "80"), "b sees "+gateway)
	expect(t, a.Netns, "tcp", at(gateway, "8000"), "host sees "+ipA6.String())
	expect(t, a.Netns, "tcp", at(hostIP6, "8000"), "host sees "+ipA6.String())
	// Nobody out there has a route to a unique local address.
	asHost, err := ask(t, "", "tcp", at(outsideIP6, "8000"))
	must(t, err)
	expect(t, a.Netns, "tcp", at(outsideIP6, "8000"), asHost)

	// Once more, and after a restart.
	again := restart(t, n.builtin.cfg)
	must(t, again.Reconcile(bg, []string{a.ID, b.ID}))
	if v4, v6 := setupBoth(t, again, a); v4 != ipA || v6 != ipA6 {
		t.Errorf("addresses changed to %s and %s", v4, v6)
	}
	expect(t, a.Netns, "tcp", at(ipB6, "80"), "b sees "+ipA6.String())
	if fmt.Sprint(again.builtin.subnets) != fmt.Sprint(n.builtin.subnets) {
		t.Errorf("chose %v, then %v", n.builtin.subnets, again.builtin.subnets)
	}
}

func TestIPv6Only(t *testing.T) {
	lab := newLab(t)
	cfg := newConfig(t, "podtest0")
	cfg.Subnets = prefixes("fd00:77::/64")
	n := newNetwork(t, cfg)
	pod := testPod(t, "web", PortMapping{HostPort: 8080, ContainerPort: 80})
	r, err := n.Setup(bg, pod)
	must(t, err)
	if fmt.Sprint(r.IPs) != "[fd00:77::2]" {
		t.Errorf("got %v", r.IPs)
	}
	serve(t, pod.Netns, "tcp", ":80", "web")
	expect(t, lab.outside, "tcp", at(hostIP6, "8080"), "web sees "+outsideIP6.String())
	_, err = n.Setup(bg, testPod(t, "four", PortMapping{HostIP: hostIP, HostPort: 1, ContainerPort: 1}))
	if err == nil || !strings.Contains(err.Error(), "host port 192.0.2.1:1/TCP: pods have no address of that family, only of fd00:77::/64") {
		t.Errorf("an IPv4 host port: %v", err)
	}
	if nft(t, "list", "table", "inet", "podtest0"); strings.Contains(nft(t, "list", "table", "inet", "podtest0"), "ip saddr") {
		t.Error("rules for IPv4")
	}
}

func TestHostPortsOfIPv6(t *testing.T) {
	lab := newLab(t)
	n := newNetwork(t, newConfig(t, "podtest0"))
	web := testPod(t, "web",
		PortMapping{HostPort: 8080, ContainerPort: 80},
		PortMapping{Protocol: "UDP", HostPort: 5353, ContainerPort: 53},
		PortMapping{HostIP: hostIP62, HostPort: 9090, ContainerPort: 80})
	other := testPod(t, "other", PortMapping{HostIP: hostIP6, HostPort: 9090, ContainerPort: 80})
	_, ip := setupBoth(t, n, web)
	_, otherIP := setupBoth(t, n, other)
	_, gateway := gateways(n)
	serve(t, web.Netns, "tcp", ":80", "web")
	serve(t, web.Netns, "udp", "["+ip.String()+"]:53", "web")
	serve(t, other.Netns, "tcp", ":80", "other")

	for _, c := range []struct{ from, netns, network, addr, want string }{
		{"outside", lab.outside, "tcp", "[2001:db8::1]:8080", "web sees 2001:db8::2"},
		{"outside", lab.outside, "udp", "[2001:db8::1]:5353", "web sees 2001:db8::2"},
		{"outside", lab.outside, "tcp", "[2001:db8::3]:9090", "web sees 2001:db8::2"},
		{"outside", lab.outside, "tcp", "[2001:db8::1]:9090", "other sees 2001:db8::2"},
		{"outside by IPv4", lab.outside, "tcp", "192.0.2.1:8080", "web sees 192.0.2.2"},
		{"host by its address", "", "tcp", "[2001:db8::1]:8080", "web sees 2001:db8::1"},
		{"another pod", other.Netns, "tcp", "[2001:db8::1]:8080", "web sees " + gateway},
		{"another pod", other.Netns, "udp", "[2001:db8::1]:5353", "web sees " + gateway},
		{"another pod by the gateway", other.Netns, "tcp", at(gateway, "8080"), "web sees " + gateway},
		{"the pod itself", web.Netns, "tcp", "[2001:db8::1]:8080", "web sees " + gateway},
		{"the pod itself", web.Netns, "udp", "[2001:db8::1]:5353", "web sees " + gateway},
		{"another pod, directly", other.Netns, "tcp", at(ip, "80"), "web sees " + otherIP.String()},
	} {
		t.Run(c.from+" "+c.network+" "+c.addr, func(t *testing.T) {
			expect(t, c.netns, c.network, c.addr, c.want)
		})
	}
	// The kernel has no route_localnet for IPv6. Who tries "localhost" must be
	// told at once, to go on with 127.0.0.1.
	if got, err := ask(t, "", "tcp", "[::1]:8080"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("by ::1: got %q, %v", got, err)
	}
	expect(t, "", "tcp", "localhost:8080", "web sees "+n.builtin.subnets[0].Addr().Next().String())
	if got := nft(t, "list", "table", "inet", "podtest0"); !strings.Contains(got, "fib daddr type local dnat ip6 to meta l4proto . th dport map @host_ports6") ||
		!strings.Contains(got, "2001:db8::3 . tcp . 9090 : "+ip.String()+" . 80") {
		t.Errorf("rules:\n%s", got)
	}

	// A second instance cannot have them.
	cfg := newConfig(t, "podtest1")
	cfg.HostDir = n.builtin.cfg.HostDir
	second, err := New(cfg)
	must(t, err)
	defer second.Close()
	_, err = second.Setup(bg, testPod(t, "x", PortMapping{HostIP: hostIP62, HostPort: 9090, ContainerPort: 1}))
	if err == nil || !strings.Contains(err.Error(), "host port [2001:db8::3]:9090/TCP is taken by a pod of instance podtest0") {
		t.Errorf("got %v", err)
	}
	must(t, second.Destroy(bg))

	teardown(t, n, web)
	if got, err := ask(t, "", "tcp", "[2001:db8::1]:8080"); err == nil {
		t.Errorf("host port still answers %q after Teardown", got)
	}
	expect(t, lab.outside, "tcp", "[2001:db8::1]:9090", "other sees 2001:db8::2")
}

// As TestUDPFollowsTheHostPort.
func TestUDPFollowsTheHostPortOfIPv6(t *testing.T) {
	lab := newLab(t)
	n := newNetwork(t, newConfig(t, "podtest0"))
	udpFollows(t, lab, n, "[2001:db8::1]:5353", "2001:db8::2")
}

// Who makes the host a router must not make it deaf to its own routers.
func TestHostStillListensToItsRouters(t *testing.T) {
	newLab(t)
	read := func(key string) string {
		v, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + key)
		must(t, err)
		return strings.TrimSpace(string(v))
	}
	n := newNetwork(t, newConfig(t, "podtest0"))
	pod := testPod(t, "a")
	setup(t, n, pod)
	if read("all/forwarding") != "1" || read("wire/accept_ra") != "2" || read("default/forwarding") != "0" || read("podtest0/accept_ra") != "0" {
		t.Errorf("forwarding %s, accept_ra of the wire %s, forwarding of new links %s, accept_ra of the bridge %s",
			read("all/forwarding"), read("wire/accept_ra"), read("default/forwarding"), read("podtest0/accept_ra"))
	}
	in(t, pod.Netns, func() {
		if read("eth0/accept_ra") != "0" {
			t.Error("pods take router advertisements, of other pods for one")
		}
	})
	// newNetwork sees that all is put back.
}

func TestWithoutIPv6(t *testing.T) {
	newLab(t)
	for _, conf := range []string{"all", "default"} {
		key := "ipv6/conf/" + conf + "/disable_ipv6"
		must(t, writeSysctl(key, "1"))
		t.Cleanup(func() { must(t, writeSysctl(key, "0")) })
	}
	cfg6 := newConfig(t, "podtest1")
	cfg6.Subnets = prefixes("fd00::/64")
	n6 := newNetwork(t, cfg6)
	cfg := newConfig(t, "podtest0")
	n := newNetwork(t, cfg)
	pod := testPod(t, "a")
	if r, err := n.Setup(bg, pod); err != nil || len(r.IPs) != 1 || !r.IPs[0].Is4() {
		t.Errorf("got %v, %v", r.IPs, err)
	}
	in(t, pod.Netns, func() {
		eth, err := netlink.LinkByName("eth0")
		must(t, err)
		if addrs, err := netlink.AddrList(eth, netlink.FAMILY_V6); err != nil || len(addrs) > 0 {
			t.Errorf("IPv6 addresses: %v, %v", addrs, err)
		}
	})
	_, err := n.Setup(bg, testPod(t, "b", PortMapping{HostIP: hostIP6, HostPort: 5, ContainerPort: 1}))
	if err == nil || !strings.Contains(err.Error(), "host port [2001:db8::1]:5/TCP: pods have no address of that family") {
		t.Errorf("an IPv6 host port: %v", err)
	}

	_, err = n6.Setup(bg, testPod(t, "c"))
	for _, err := range []error{err, n6.Ready()} {
		if err == nil || !strings.Contains(err.Error(), "net.ipv6.conf.all.disable_ipv6=1") {
			t.Errorf("IPv6 that is set and cannot be had: %v", err)
		}
	}
	must(t, n.Reconcile(bg, nil))
	// On again: the next pods have it.
	for _, conf := range []string{"all", "default"} {
		must(t, writeSysctl("ipv6/conf/"+conf+"/disable_ipv6", "0"))
	}
	must(t, n6.Ready())
	again := restart(t, cfg)
	setupBoth(t, again, testPod(t, "d"))
	must(t, again.Reconcile(bg, nil))
	must(t, again.Destroy(bg))
	must(t, n6.Destroy(bg))
}

// The kernel need not have SCTP itself to lead it to a pod.
func TestSCTPHostPort(t *testing.T) {
	lab := newLab(t)
	n := newNetwork(t, newConfig(t, "podtest0"))
	pod := testPod(t, "a", PortMapping{Protocol: "SCTP", HostPort: 9999, ContainerPort: 99})
	if _, err := n.Setup(bg, pod); err != nil {
		if strings.Contains(err.Error(), "connection tracking has no SCTP") {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	var c net.PacketConn
	in(t, pod.Netns, func() {
		var err error
		c, err = net.ListenPacket("ip4:132", "0.0.0.0")
		must(t, err)
	})
	defer c.Close()
	in(t, lab.outside, func() {
		out, err := net.Dial("ip4:132", hostIP.String())
		must(t, err)
		defer out.Close()
		_, err = out.Write(sctpInit(40000, 9999))
		must(t, err)
	})
	c.SetReadDeadline(time.Now().Add(timeout))
	buf := make([]byte, 200)
	got, from, err := c.ReadFrom(buf)
	must(t, err)
	if want := sctpInit(40000, 99); string(buf[:got]) != string(want) || from.String() != outsideIP.String() {
		t.Errorf("got %x from %s, want %x", buf[:got], from, want)
	}
}

// sctpInit is the first packet of an association (RFC 9260, 3.3.2).
func sctpInit(from, to uint16) []byte {
	p := binary.BigEndian.AppendUint16(nil, from)
	p = binary.BigEndian.AppendUint16(p, to)
	p = append(p, 0, 0, 0, 0, 0, 0, 0, 0)             // tag, checksum
	p = append(p, 1, 0, 0, 20)                        // INIT
	p = append(p, 1, 2, 3, 4, 0, 1, 0, 0, 0, 1, 0, 1) // tag, window, streams
	p = append(p, 0, 0, 0, 1)                         // first TSN
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	return p
}
