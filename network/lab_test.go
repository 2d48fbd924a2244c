package network

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"podstead/network/internal/bridge"
	"podstead/sys"
)

// timeout bounds every wait of these tests.
const timeout = time.Minute

// lab is a host with a neighbour on a wire: hostIP on this side, outsideIP on
// the other, by which the host's default route goes.
type lab struct {
	outside string // namespace of the neighbour
}

var (
	hostIP     = netip.MustParseAddr("192.0.2.1")
	hostIP2    = netip.MustParseAddr("192.0.2.3")
	hostIP6    = netip.MustParseAddr("2001:db8::1")
	hostIP62   = netip.MustParseAddr("2001:db8::3")
	outsideIP  = netip.MustParseAddr("192.0.2.2")
	outsideIP6 = netip.MustParseAddr("2001:db8::2")
)

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, s := range texts {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

// wireAddr is an address on the wire, usable at once.
func wireAddr(ip netip.Addr) *netlink.Addr {
	bits := 24
	if ip.Is6() {
		bits = 64
	}
	return &netlink.Addr{IPNet: ipNet(ip, bits), Flags: unix.IFA_F_NODAD}
}

func newLab(t testing.TB) *lab {
	needRoot(t)
	outside := newNetns(t)
	ns, err := os.Open(outside)
	must(t, err)
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "wire"
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = "wire", netlink.NsFd(ns.Fd())
	must(t, netlink.LinkAdd(veth))
	t.Cleanup(func() { netlink.LinkDel(veth) })
	for _, ip := range []netip.Addr{hostIP, hostIP2, hostIP6, hostIP62} {
		must(t, netlink.AddrAdd(veth, wireAddr(ip)))
	}
	must(t, netlink.LinkSetUp(veth))
	must(t, sys.InNetNamespace(outside, func() error {
		for _, name := range []string{"lo", "wire"} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if name == "wire" {
				for _, ip := range []netip.Addr{outsideIP, outsideIP6} {
					if err := netlink.AddrAdd(link, wireAddr(ip)); err != nil {
						return err
					}
				}
			}
			if err := netlink.LinkSetUp(link); err != nil {
				return err
			}
		}
		return nil
	}))
	for _, gw := range []netip.Addr{outsideIP, outsideIP6} {
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: veth.Attrs().Index, Gw: gw.AsSlice()}))
	}
	return &lab{outside: outside}
}

func ipNet(ip netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(bits, ip.BitLen())}
}

// newNetns makes a network namespace as the engine does, and returns its path.
func newNetns(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	must(t, sys.NewNamespaces(dir, []string{sys.NetNamespace}, nil))
	path := filepath.Join(dir, sys.NetNamespace)
	t.Cleanup(func() { must(t, sys.ReleaseNamespace(path)) })
	return path
}

func newConfig(t testing.TB, name string) Config {
	level := slog.LevelWarn
	if testing.Verbose() {
		level = slog.LevelInfo
	}
	return Config{
		Name: name, StateDir: filepath.Join(t.TempDir(), "state"), HostDir: filepath.Join(t.TempDir(), "host"), CNICacheDirs: []string{},
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level})),
	}
}

// newNetwork makes a network that must leave nothing behind at the test's end.
func newNetwork(t testing.TB, cfg Config) *Network {
	t.Helper()
	needRoot(t)
	before, linksBefore := hostState(t), links(t)
	n, err := New(cfg)
	must(t, err)
	t.Cleanup(func() {
		ctx := context.Background()
		must(t, n.Reconcile(ctx, nil))
		must(t, n.Destroy(ctx))
		must(t, n.Close())
		// Pairs whose namespace has just ended are the kernel's to delete.
		waitFor(t, func() bool { return links(t) <= linksBefore })
		if after := hostState(t); after != before {
			t.Errorf("host is not as before:\n%s\nbut:\n%s", before, after)
		}
		os.Remove(clusterFile(cfg.StateDir)) // the cluster's word, which outlives the network
		for _, dir := range []string{cfg.StateDir, cfg.HostDir} {
			if left := filesBelow(dir); len(left) > 0 {
				t.Errorf("files left: %v", left)
			}
		}
	})
	return n
}

// hostState describes what a network may leave behind on the host.
func hostState(t testing.TB) string {
	t.Helper()
	var out strings.Builder
	links, err := bridge.Whole(netlink.LinkList)
	must(t, err)
	for _, l := range links {
		if l.Type() != "veth" {
			fmt.Fprintln(&out, "link", l.Attrs().Name)
		}
	}
	routes, err := bridge.Whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	must(t, err)
	for _, r := range routes {
		if r.Dst == nil || !r.Dst.IP.IsLinkLocalUnicast() { // those of veths
			fmt.Fprintln(&out, "route", r.Dst, r.Gw)
		}
	}
	c, err := nftables.New()
	must(t, err)
	tables, err := c.ListTables()
	must(t, err)
	for _, table := range tables {
		fmt.Fprintln(&out, "table", table.Name)
	}
	for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/default/forwarding", "ipv6/conf/wire/accept_ra"} {
		value, err := os.ReadFile("/proc/sys/net/" + key)
		if err == nil { // else there is no wire
			fmt.Fprintln(&out, key, strings.TrimSpace(string(value)))
		}
	}
	return out.String()
}

func links(t testing.TB) int {
	t.Helper()
	all, err := bridge.Whole(netlink.LinkList)
	must(t, err)
	return len(all)
}

// waitFor waits until cond holds.
func waitFor(t testing.TB, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(timeout)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("waited in vain")
		}
	}
}

func filesBelow(dir string) (files []string) {
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return nil
	})
	return files
}

// testPod describes a pod in a new namespace.
func testPod(t testing.TB, name string, ports ...PortMapping) Pod {
	return Pod{ID: "id-" + name, Namespace: "default", Name: name, UID: "uid-" + name, Netns: newNetns(t), Ports: ports}
}

func setup(t testing.TB, n *Network, pod Pod) netip.Addr {
	t.Helper()
	r, err := n.Setup(context.Background(), pod)
	must(t, err)
	if len(r.IPs) == 0 {
		t.Fatal("Setup returned no address")
	}
	return r.IPs[0]
}

func teardown(t testing.TB, n *Network, pod Pod) {
	t.Helper()
	must(t, n.Teardown(context.Background(), pod))
}

// serve answers in a namespace ("" is the host): to each connection or packet
// with "NAME sees CLIENT".
func serve(t testing.TB, netns, network, addr, name string) {
	t.Helper()
	in(t, netns, func() {
		switch network {
		case "tcp":
			l, err := net.Listen("tcp", addr)
			must(t, err)
			t.Cleanup(func() { l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					fmt.Fprintf(c, "%s sees %s", name, host(c.RemoteAddr()))
					c.Close()
				}
			}()
		case "udp":
			p, err := net.ListenPacket("udp", addr)
			must(t, err)
			t.Cleanup(func() { p.Close() })
			go func() {
				buf := make([]byte, 1)
				for {
					_, from, err := p.ReadFrom(buf)
					if err != nil {
						return
					}
					fmt.Fprintf(writerTo{p, from}, "%s sees %s", name, host(from))
				}
			}()
		}
	})
}

type writerTo struct {
	p  net.PacketConn
	to net.Addr
}

func (w writerTo) Write(b []byte) (int, error) { return w.p.WriteTo(b, w.to) }

func host(a net.Addr) string { return netip.MustParseAddrPort(a.String()).Addr().Unmap().String() }

// ask connects from a namespace ("" is the host) and returns the answer.
func ask(t testing.TB, netns, network, addr string) (answer string, err error) {
	t.Helper()
	in(t, netns, func() {
		var c net.Conn
		if c, err = net.DialTimeout(network, addr, timeout); err != nil {
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(timeout))
		if network == "udp" {
			if _, err = c.Write([]byte("?")); err != nil {
				return
			}
			buf := make([]byte, 100)
			n, rerr := c.Read(buf)
			answer, err = string(buf[:n]), rerr
			return
		}
		var b []byte
		b, err = io.ReadAll(c)
		answer = string(b)
	})
	return answer, err
}

func expect(t testing.TB, netns, network, addr, want string) {
	t.Helper()
	got, err := ask(t, netns, network, addr)
	if err != nil || got != want {
		t.Errorf("%s %s: got %q, %v; want %q", network, addr, got, err, want)
	}
}

// in runs f in a namespace ("" is the host).
func in(t testing.TB, netns string, f func()) {
	t.Helper()
	if netns == "" {
		f()
		return
	}
	// f may end its goroutine by t.Fatal, of which InNetNamespace would not hear.
	done, completed := make(chan struct{}), false
	joined := make(chan error, 1)
	go func() {
		joined <- sys.InNetNamespace(netns, func() error {
			defer close(done)
			f()
			completed = true
			return nil
		})
	}()
	select {
	case err := <-joined:
		must(t, err)
	case <-done:
		if !completed {
			t.FailNow()
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// nft returns what the nft command says.
func nft(t testing.TB, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("nft is not installed")
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("nft %v: %v: %s", args, err, bytes.TrimSpace(out))
	}
	return string(out)
}

func leaseFiles(t testing.TB, cfg Config) []string {
	t.Helper()
	files := filesBelow(filepath.Join(cfg.StateDir, "leases"))
	slices.Sort(files)
	return files
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w: %s", name, args, err, out)
	}
	return nil
}

// writeSysctl writes in the namespace of the calling thread.
func writeSysctl(key, value string) error {
	return os.WriteFile("/proc/sys/net/"+key, []byte(value), 0)
}

// up tells whether a link is there and up.
func up(t testing.TB, name string) bool {
	t.Helper()
	link, err := netlink.LinkByName(name)
	return err == nil && link.Attrs().Flags&net.FlagUp != 0
}
