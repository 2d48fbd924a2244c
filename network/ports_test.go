package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestHostPorts(t *testing.T) {
	lab := newLab(t)
	n := newNetwork(t, newConfig(t, "podtest0"))
	web := testPod(t, "web",
		PortMapping{Protocol: "TCP", HostPort: 8080, ContainerPort: 80},
		PortMapping{Protocol: "udp", HostPort: 5353, ContainerPort: 53},
		PortMapping{HostIP: hostIP2, HostPort: 9090, ContainerPort: 80},
		PortMapping{HostPort: 0, ContainerPort: 81})
	other := testPod(t, "other", PortMapping{HostIP: hostIP, HostPort: 9090, ContainerPort: 80})
	ip, otherIP := setup(t, n, web), setup(t, n, other)
	gateway := n.builtin.subnets[0].Addr().Next().String()
	serve(t, web.Netns, "tcp", ":80", "web")
	serve(t, web.Netns, "udp", ":53", "web")
	serve(t, other.Netns, "tcp", ":80", "other")

	for _, c := range []struct {
		from, netns   string
		network, addr string
		want          string
	}{
		{"outside", lab.outside, "tcp", "192.0.2.1:8080", "web sees 192.0.2.2"},
		{"outside", lab.outside, "udp", "192.0.2.1:5353", "web sees 192.0.2.2"},
		{"outside", lab.outside, "tcp", "192.0.2.3:9090", "web sees 192.0.2.2"},
		{"outside", lab.outside, "tcp", "192.0.2.1:9090", "other sees 192.0.2.2"},
		{"host by loopback", "", "tcp", "127.0.0.1:8080", "web sees " + gateway},
		{"host by loopback", "", "udp", "127.0.0.1:5353", "web sees " + gateway},
		{"host by its address", "", "tcp", "192.0.2.1:8080", "web sees 192.0.2.1"},
		{"host by its address", "", "tcp", "192.0.2.3:9090", "web sees 192.0.2.1"},
		{"another pod", other.Netns, "tcp", "192.0.2.1:8080", "web sees " + gateway},
		{"another pod", other.Netns, "udp", "192.0.2.1:5353", "web sees " + gateway},
		{"another pod by the gateway", other.Netns, "tcp", gateway + ":8080", "web sees " + gateway},
		{"the pod itself", web.Netns, "tcp", "192.0.2.1:8080", "web sees " + gateway},
		{"the pod itself", web.Netns, "udp", "192.0.2.1:5353", "web sees " + gateway},
		{"another pod, directly", other.Netns, "tcp", ip.String() + ":80", "web sees " + otherIP.String()},
	} {
		t.Run(c.from+" "+c.network+" "+c.addr, func(t *testing.T) {
			expect(t, c.netns, c.network, c.addr, c.want)
		})
	}

	teardown(t, n, web)
	if got, err := ask(t, "", "tcp", "127.0.0.1:8080"); err == nil {
		t.Errorf("host port still answers %q after Teardown", got)
	}
	expect(t, lab.outside, "tcp", "192.0.2.1:9090", "other sees 192.0.2.2")
}

// A pod must not reach what listens on the host's loopback only, although
// route_localnet is on for the bridge (CVE-2020-8558).
func TestPodsDoNotReachTheHostsLoopback(t *testing.T) {
	newLab(t)
	n := newNetwork(t, newConfig(t, "podtest0"))
	a := testPod(t, "a", PortMapping{HostPort: 8080, ContainerPort: 80})
	setup(t, n, a)
	gateway := n.builtin.subnets[0].Addr().Next().String()
	secret, err := net.ListenPacket("udp4", "127.0.0.1:7777")
	must(t, err)
	defer secret.Close()
	open, err := net.ListenPacket("udp4", gateway+":7778")
	must(t, err)
	defer open.Close()
	in(t, a.Netns, func() {
		// The pod, as root, routes 127/8 to the host.
		must(t, writeSysctl("ipv4/conf/eth0/route_localnet", "1"))
		must(t, run("ip", "route", "del", "local", "127.0.0.0/8", "table", "local"))
		must(t, run("ip", "route", "del", "local", "127.0.0.1", "table", "local"))
		must(t, run("ip", "route", "add", "127.0.0.0/8", "via", gateway))
		c, err := net.Dial("udp4", "127.0.0.1:7777")
		must(t, err)
		c.Write([]byte("x"))
		c.Close()
		// This one, sent later, arrives.
		c, err = net.Dial("udp4", gateway+":7778")
		must(t, err)
		c.Write([]byte("x"))
		c.Close()
	})
	open.SetReadDeadline(time.Now().Add(timeout))
	if _, _, err := open.ReadFrom(make([]byte, 1)); err != nil {
		t.Fatal("pod does not reach the host at all:", err)
	}
	secret.SetReadDeadline(time.Now())
	if _, from, err := secret.ReadFrom(make([]byte, 1)); err == nil {
		t.Errorf("pod reached the host's 127.0.0.1 from %s", from)
	}
}

// A client that goes on sending from one port must be led to the pod that has
// the host port now, not to the one that had it, nor to nobody.
func TestUDPFollowsTheHostPort(t *testing.T) {
	lab := newLab(t)
	n := newNetwork(t, newConfig(t, "podtest0"))
	udpFollows(t, lab, n, "192.0.2.1:5353", "192.0.2.2")
}

func udpFollows(t *testing.T, lab *lab, n *Network, addr, client string) {
	var conn net.Conn
	in(t, lab.outside, func() {
		var err error
		conn, err = net.Dial("udp", addr)
		must(t, err)
	})
	defer conn.Close()
	conn.Write([]byte("?")) // nobody there: remembered as a connection to the host
	// Answers to earlier questions may still be in the client's socket.
	askClient := func(want string) (got string) {
		buf := make([]byte, 100)
		deadline := time.Now().Add(timeout)
		for time.Now().Before(deadline) {
			if _, err := conn.Write([]byte("?")); err != nil {
				continue // the answer to an earlier packet: port unreachable
			}
			conn.SetReadDeadline(deadline)
			if n, err := conn.Read(buf); err == nil {
				if got = string(buf[:n]); got == want {
					break
				}
			}
		}
		return got
	}
	for _, name := range []string{"first", "second"} {
		pod := testPod(t, name, PortMapping{Protocol: "UDP", HostPort: 5353, ContainerPort: 53})
		setup(t, n, pod)
		serve(t, pod.Netns, "udp", ":53", name)
		want := name + " sees " + client
		if got := askClient(want); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
		teardown(t, n, pod)
	}
}

func TestHostPortConflictNamesThePod(t *testing.T) {
	newLab(t)
	n := newNetwork(t, newConfig(t, "podtest0"))
	first := testPod(t, "first", PortMapping{HostPort: 8080, ContainerPort: 80}, PortMapping{HostIP: hostIP, HostPort: 9000, ContainerPort: 1})
	setup(t, n, first)
	for _, c := range []struct {
		ports []PortMapping
		want  string
	}{
		{[]PortMapping{{HostPort: 8080, ContainerPort: 81}}, "host port 8080/TCP is taken by pod default/first (id-first)"},
		{[]PortMapping{{HostPort: 1, ContainerPort: 1}, {HostIP: hostIP2, HostPort: 8080, ContainerPort: 81}}, "host port 192.0.2.3:8080/TCP is taken by pod default/first"},
		{[]PortMapping{{HostPort: 9000, ContainerPort: 81}}, "host port 9000/TCP is taken by pod default/first"},
		{[]PortMapping{{HostPort: 5, ContainerPort: 1}, {HostPort: 5, ContainerPort: 2}}, "host port 5/TCP is asked for twice"},
		{[]PortMapping{{Protocol: "ICMP", HostPort: 5, ContainerPort: 1}}, `host port 5: protocol "ICMP" is not TCP, UDP or SCTP`},
		{[]PortMapping{{HostPort: 5}}, "container port is 0"},
		{[]PortMapping{{HostIP: netip.IPv6Loopback(), HostPort: 5, ContainerPort: 1}}, "the kernel leads nothing from ::1 to a pod"},
	} {
		pod := testPod(t, "second", c.ports...)
		_, err := n.Setup(context.Background(), pod)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "default/second") {
			t.Errorf("%v: got %v, want %q", c.ports, err, c.want)
		}
	}
	// Nothing of the refused ones is kept.
	setup(t, n, testPod(t, "third", PortMapping{Protocol: "UDP", HostPort: 8080, ContainerPort: 80},
		PortMapping{HostIP: hostIP2, HostPort: 9000, ContainerPort: 1}, PortMapping{HostPort: 1, ContainerPort: 1}, PortMapping{HostPort: 5, ContainerPort: 1}))
	teardown(t, n, first)
	setup(t, n, testPod(t, "fourth", PortMapping{HostPort: 8080, ContainerPort: 80}))
}

func TestPortOwners(t *testing.T) {
	o := portOwners{}
	tcp := func(ip string, port uint16) PortMapping {
		m := PortMapping{Protocol: "TCP", HostPort: port, ContainerPort: 1}
		if ip != "" {
			m.HostIP = netip.MustParseAddr(ip)
		}
		return m
	}
	must(t, o.take([]PortMapping{tcp("10.0.0.1", 80), tcp("10.0.0.2", 80)}, "a", "ns/a"))
	if err := o.take([]PortMapping{tcp("", 81), tcp("", 80)}, "b", "ns/b"); err == nil {
		t.Error("wildcard over taken addresses was granted")
	}
	must(t, o.take([]PortMapping{tcp("", 81)}, "c", "ns/c")) // was given back
	o.release([]PortMapping{tcp("10.0.0.1", 80)}, "other")   // not its own
	if err := o.take([]PortMapping{tcp("10.0.0.1", 80)}, "b", "ns/b"); err == nil {
		t.Error("a port was released by who does not have it")
	}
	o.release([]PortMapping{tcp("10.0.0.1", 80), tcp("10.0.0.2", 80)}, "a")
	o.release([]PortMapping{tcp("", 81)}, "c")
	if len(o) != 0 {
		t.Errorf("left: %v", o)
	}
	must(t, o.take([]PortMapping{tcp("", 80)}, "b", "ns/b"))
}

func TestTableAsNftShowsIt(t *testing.T) {
	newLab(t)
	cfg := newConfig(t, "podtest0")
	cfg.Subnets = prefixes("10.1.0.0/24")
	n := newNetwork(t, cfg)
	setup(t, n, testPod(t, "a", PortMapping{HostPort: 8080, ContainerPort: 80}, PortMapping{Protocol: "SCTP", HostIP: hostIP, HostPort: 99, ContainerPort: 9}))
	got := nft(t, "list", "table", "inet", "podtest0")
	for _, want := range []string{
		"type inet_proto . inet_service : ipv4_addr . inet_service",
		"elements = { tcp . 8080 : 10.1.0.2 . 80 }",
		fmt.Sprintf("elements = { %s . sctp . 99 : 10.1.0.2 . 9 }", hostIP),
		`iifname "podtest0" ip daddr 127.0.0.0/8 drop`,
		`oifname != "podtest0" ip saddr 10.1.0.0/24 ip daddr != 10.1.0.0/24 ip daddr != 224.0.0.0/4 masquerade fully-random`,
		`fib daddr type local dnat ip to meta l4proto . th dport map @host_ports`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
}
