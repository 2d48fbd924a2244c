package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"podstead/network/internal/ipam"
	"podstead/sys"
)

var bg = context.Background()

// restart makes a second Network on the same state, as after kill -9 of the
// engine. newNetwork's cleanup goes on with the first one, which is right only
// if the second one leaves no lease.
func restart(t *testing.T, cfg Config) *Network {
	t.Helper()
	n, err := New(cfg)
	must(t, err)
	t.Cleanup(func() { n.Close() })
	return n
}

func TestSetupAndTeardownAreRepeatable(t *testing.T) {
	lab := newLab(t)
	cfg := newConfig(t, "podtest0")
	n := newNetwork(t, cfg)
	pod := testPod(t, "a", PortMapping{HostPort: 8080, ContainerPort: 80})
	ip := setup(t, n, pod)
	serve(t, pod.Netns, "tcp", ":80", "a")
	for range 2 {
		if again := setup(t, n, pod); again != ip {
			t.Errorf("second Setup gave %s, first %s", again, ip)
		}
	}
	again := restart(t, cfg)
	if got := setup(t, again, pod); got != ip {
		t.Errorf("Setup after a restart gave %s, first %s", got, ip)
	}
	expect(t, lab.outside, "tcp", "192.0.2.1:8080", "a sees 192.0.2.2")
	if files := leaseFiles(t, cfg); len(files) != 1 {
		t.Errorf("lease files: %v", files)
	}
	teardown(t, again, pod)
	teardown(t, again, pod)
	must(t, again.Teardown(bg, Pod{ID: "never-seen"}))
	teardown(t, n, pod) // knows nothing of the restart

	// The same pod again in the same namespace, whose old pair is still there.
	setup(t, n, pod)
	expect(t, lab.outside, "tcp", "192.0.2.1:8080", "a sees 192.0.2.2")
	// And in another namespace.
	moved := pod
	moved.Netns = newNetns(t)
	kept := setup(t, n, moved)
	serve(t, moved.Netns, "tcp", ":80", "moved")
	expect(t, lab.outside, "tcp", "192.0.2.1:8080", "moved sees 192.0.2.2")
	if old := setup(t, n, moved); old != kept {
		t.Errorf("address changed from %s to %s", kept, old)
	}
}

func TestTeardownWithoutNamespace(t *testing.T) {
	newLab(t)
	n := newNetwork(t, newConfig(t, "podtest0"))
	pod := testPod(t, "a", PortMapping{Protocol: "UDP", HostPort: 53, ContainerPort: 53})
	setup(t, n, pod)
	must(t, sys.ReleaseNamespace(pod.Netns))
	pod.Netns = ""
	teardown(t, n, pod)
	teardown(t, n, pod)
}

// A pod that was disconnected but whose namespace lives on must not answer for
// an address that another pod has now.
func TestDisconnectedPodIsCutOff(t *testing.T) {
	newLab(t)
	cfg := newConfig(t, "podtest0")
	cfg.Subnets = prefixes("10.9.0.0/30") // room for one pod
	n := newNetwork(t, cfg)
	for i := range 5 {
		pod := testPod(t, fmt.Sprint("pod", i))
		ip := setup(t, n, pod)
		serve(t, pod.Netns, "tcp", ":80", pod.Name)
		expect(t, "", "tcp", ip.String()+":80", pod.Name+" sees 10.9.0.1")
		teardown(t, n, pod)
	}
}

func TestExhaustedSubnet(t *testing.T) {
	newLab(t)
	cfg := newConfig(t, "podtest0")
	cfg.Subnets = prefixes("10.9.0.8/29")
	n := newNetwork(t, cfg)
	pods := make([]Pod, 5)
	var ips []netip.Addr
	for i := range pods {
		pods[i] = testPod(t, fmt.Sprint("pod", i))
		ips = append(ips, setup(t, n, pods[i]))
	}
	more := testPod(t, "more", PortMapping{HostPort: 80, ContainerPort: 80})
	_, err := n.Setup(bg, more)
	var exhausted *ipam.ExhaustedError
	if !errors.As(err, &exhausted) || !strings.Contains(err.Error(), "no free address in 10.9.0.8/29: all 5 are in use") {
		t.Fatalf("got %v", err)
	}
	if files := leaseFiles(t, cfg); len(files) != 5 {
		t.Errorf("lease files: %v", files)
	}
	teardown(t, n, pods[3])
	teardown(t, n, pods[1])
	if got := setup(t, n, more); got != ips[3] {
		t.Errorf("got %s, want %s, which was released first", got, ips[3])
	}
}

// After a crash between any two steps the next start cleans up.
func TestReconcileAfterACrash(t *testing.T) {
	lab := newLab(t)
	cfg := newConfig(t, "podtest0")
	n := newNetwork(t, cfg)
	live := testPod(t, "live", PortMapping{HostPort: 8080, ContainerPort: 80})
	gone := testPod(t, "gone", PortMapping{HostPort: 8081, ContainerPort: 80})
	liveIP, goneIP := setup(t, n, live), setup(t, n, gone)
	serve(t, live.Netns, "tcp", ":80", "live")

	// A lease whose pod never got further.
	half := *n.leases.get(gone.ID)
	half.PodID, half.Link = "id-half", "vethnever"
	half.IPs, half.Ports = []netip.Addr{goneIP.Next()}, []PortMapping{{Protocol: "TCP", HostPort: 8082, ContainerPort: 1}}
	must(t, n.leases.put(&half))
	// A lease of a run before the last reboot.
	old := half
	old.PodID, old.BootID, old.IPs, old.Ports = "id-old", "another boot", []netip.Addr{goneIP.Next().Next()}, nil
	must(t, n.leases.put(&old))
	// A pod without a lease.
	orphan := testPod(t, "orphan")
	setup(t, n, orphan)
	must(t, os.Remove(filepath.Join(cfg.StateDir, "leases", "id-orphan.json")))
	// Unreadable ones, and what a cut write leaves.
	for _, name := range []string{"garbage.json", ".tmp-x.json-123"} {
		must(t, os.WriteFile(filepath.Join(cfg.StateDir, "leases", name), []byte("{"), 0o600))
	}
	// The firewall was restarted meanwhile.
	nft(t, "flush", "ruleset")
	must(t, writeSysctl("ipv4/ip_forward", "0"))

	again := restart(t, cfg)
	must(t, again.Reconcile(bg, []string{live.ID}))
	if got := again.leases.all(); len(got) != 1 || got[0].PodID != live.ID {
		t.Errorf("leases after Reconcile: %v", got)
	}
	expect(t, lab.outside, "tcp", "192.0.2.1:8080", "live sees 192.0.2.2")
	ports, err := again.builtin.bridge.Ports()
	must(t, err)
	if len(ports) != 1 {
		t.Errorf("ports of the bridge: %v", ports)
	}
	if rules := nft(t, "list", "table", "inet", "podtest0"); strings.Contains(rules, "8081") || strings.Contains(rules, "8082") {
		t.Errorf("host ports of pods that are gone:\n%s", rules)
	}
	if got := setup(t, again, live); got != liveIP {
		t.Errorf("address changed from %s to %s", liveIP, got)
	}
	fresh := setup(t, again, testPod(t, "fresh"))
	if fresh == liveIP {
		t.Errorf("address %s was given out twice", fresh)
	}
	must(t, again.Reconcile(bg, nil))
	must(t, again.Reconcile(bg, nil))
	*n.leases = leases{dir: n.leases.dir, log: n.leases.log, byPod: map[string]*lease{}}
}

// What kept pods from being connected is told, and forgotten once it is over.
func TestReadyAgain(t *testing.T) {
	newLab(t)
	n := newNetwork(t, newConfig(t, "podtest0"))
	must(t, n.Ready())
	must(t, run("ip", "link", "add", "podtest0", "type", "veth", "peer", "name", "podtest0p"))
	_, err := n.Setup(bg, testPod(t, "a"))
	for _, err := range []error{err, n.Ready()} {
		if err == nil || !strings.Contains(err.Error(), "link podtest0 is there already and is no bridge but a veth") {
			t.Errorf("got %v", err)
		}
	}
	must(t, run("ip", "link", "del", "podtest0"))
	must(t, n.Ready())
}

func TestSubnetFileIsLost(t *testing.T) {
	newLab(t)
	cfg := newConfig(t, "podtest0")
	cfg.Subnets = prefixes("10.9.0.0/24")
	n := newNetwork(t, cfg)
	pod := testPod(t, "a")
	ip := setup(t, n, pod)
	cfg.Subnets = nil
	must(t, os.WriteFile(n.builtin.subnetFile(), []byte("{"), 0o600))
	again := restart(t, cfg)
	if got := setup(t, again, pod); got != ip {
		t.Errorf("address changed from %s to %s", ip, got)
	}
	teardown(t, again, pod)
	setup(t, again, pod)
	// The bridge is gone, too: as after a reboot.
	must(t, os.WriteFile(n.builtin.subnetFile(), []byte("{"), 0o600))
	link, err := netlink.LinkByName("podtest0")
	must(t, err)
	must(t, netlink.LinkDel(link))
	last := restart(t, cfg)
	must(t, last.Reconcile(bg, []string{pod.ID}))
	must(t, last.Teardown(bg, pod))
	setup(t, last, testPod(t, "b"))
	must(t, last.Reconcile(bg, nil))
	must(t, n.leases.remove(pod.ID))
}

// After a reboot a pod gets its address again if nobody has it.
func TestAddressOutlivesAReboot(t *testing.T) {
	newLab(t)
	cfg := newConfig(t, "podtest0")
	n := newNetwork(t, cfg)
	setup(t, n, testPod(t, "first"))
	pod := testPod(t, "a", PortMapping{HostPort: 80, ContainerPort: 80})
	ip := setup(t, n, pod)
	n.builtin.bootID = "another boot"
	must(t, n.Reconcile(bg, []string{pod.ID}))
	pod.Netns = newNetns(t)
	if got := setup(t, n, pod); got != ip {
		t.Errorf("got %s, had %s", got, ip)
	}
}

// Who takes the bridge or the table away gets it back with the next pod, and
// the pods that are connected are not the worse for it.
func TestHostSideHeals(t *testing.T) {
	lab := newLab(t)
	n := newNetwork(t, newConfig(t, "podtest0"))
	a := testPod(t, "a", PortMapping{HostPort: 8080, ContainerPort: 80})
	setup(t, n, a)
	serve(t, a.Netns, "tcp", ":80", "a")
	nft(t, "flush", "ruleset")
	if got, err := ask(t, lab.outside, "tcp", "192.0.2.1:8080"); err == nil {
		t.Errorf("got %q without a table", got)
	}
	setup(t, n, testPod(t, "b"))
	expect(t, lab.outside, "tcp", "192.0.2.1:8080", "a sees 192.0.2.2")

	link, err := netlink.LinkByName("podtest0")
	must(t, err)
	must(t, netlink.LinkDel(link))
	setup(t, n, testPod(t, "c"))
	// A port without its bridge is of no use: Setup of the pod connects it anew.
	setup(t, n, a)
	expect(t, lab.outside, "tcp", "192.0.2.1:8080", "a sees 192.0.2.2")
}

func TestTwoInstances(t *testing.T) {
	lab := newLab(t)
	one, two := newConfig(t, "podtest0"), newConfig(t, "podtest1")
	two.HostDir = one.HostDir
	// Cleanups run last first: the second one destroys while the first lives.
	n1 := newNetwork(t, one)
	a := testPod(t, "a", PortMapping{HostPort: 8080, ContainerPort: 80}, PortMapping{HostIP: hostIP2, HostPort: 9090, ContainerPort: 80})
	ipA := setup(t, n1, a)
	func() {
		n2, err := New(two)
		must(t, err)
		defer n2.Close()
		b := testPod(t, "b", PortMapping{HostPort: 8081, ContainerPort: 80})
		ipB := setup(t, n2, b)
		if n1.builtin.subnets[0].Overlaps(n2.builtin.subnets[0]) {
			t.Fatalf("both have %s", n1.builtin.subnets[0])
		}
		serve(t, a.Netns, "tcp", ":80", "a")
		serve(t, b.Netns, "tcp", ":80", "b")
		expect(t, lab.outside, "tcp", "192.0.2.1:8080", "a sees 192.0.2.2")
		expect(t, lab.outside, "tcp", "192.0.2.1:8081", "b sees 192.0.2.2")
		expect(t, b.Netns, "tcp", "192.0.2.1:8080", "a sees "+n1.builtin.subnets[0].Addr().Next().String())
		expect(t, a.Netns, "tcp", ipB.String()+":80", "b sees "+n2.builtin.subnets[0].Addr().Next().String())
		if ipA == ipB {
			t.Errorf("both pods have %s", ipA)
		}
		for _, taken := range []PortMapping{{HostPort: 8080, ContainerPort: 1}, {HostIP: hostIP, HostPort: 8080, ContainerPort: 1}, {HostPort: 9090, ContainerPort: 1}} {
			_, err := n2.Setup(bg, testPod(t, "c", taken))
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("host port %s is taken by a pod of instance podtest0 (%s)", portString(PortMapping{Protocol: "TCP", HostIP: taken.HostIP, HostPort: taken.HostPort}), one.StateDir)) {
				t.Errorf("%v of another instance: %v", taken, err)
			}
		}
		same := newConfig(t, "podtest0")
		same.HostDir = one.HostDir
		n3, err := New(same)
		must(t, err)
		if _, err := n3.Setup(bg, b); err == nil || !strings.Contains(err.Error(), "network name podtest0 is that of the instance with state in "+one.StateDir) {
			t.Errorf("a second instance of the same name: %v", err)
		}
		overlap := newConfig(t, "podtest2")
		overlap.HostDir, overlap.Subnets = one.HostDir, n1.builtin.subnets
		n4, err := New(overlap)
		must(t, err)
		if _, err := n4.Setup(bg, b); err == nil || !strings.Contains(err.Error(), "of instance podtest0") {
			t.Errorf("a second instance with the same subnet: %v", err)
		}
		if err := n2.Destroy(bg); err == nil || !strings.Contains(err.Error(), "default/b") {
			t.Errorf("Destroy with a pod: %v", err)
		}
		teardown(t, n2, b)
		must(t, n2.Destroy(bg))
	}()
	// The first one still needs forwarding.
	expect(t, lab.outside, "tcp", "192.0.2.1:8080", "a sees 192.0.2.2")
}

// An instance that was deleted without Destroy does not keep others from going on.
func TestDeletedInstance(t *testing.T) {
	newLab(t)
	one, two := newConfig(t, "podtest0"), newConfig(t, "podtest0")
	two.HostDir = one.HostDir
	before := hostState(t)
	n1, err := New(one)
	must(t, err)
	pod := testPod(t, "a", PortMapping{HostPort: 8080, ContainerPort: 80})
	setup(t, n1, pod)
	must(t, n1.Close())
	must(t, os.RemoveAll(one.StateDir))

	n2, err := New(two)
	must(t, err)
	defer n2.Close()
	must(t, n2.Reconcile(bg, nil))
	setup(t, n2, testPod(t, "b", PortMapping{HostPort: 8080, ContainerPort: 80}))
	must(t, n2.Reconcile(bg, nil))
	must(t, n2.Destroy(bg))
	if after := hostState(t); after != before {
		t.Errorf("host is not as before:\n%s\nbut:\n%s", before, after)
	}
}

func TestChosenSubnetAvoidsTheHosts(t *testing.T) {
	newLab(t)
	link, err := netlink.LinkByName("wire")
	must(t, err)
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.MustParseAddr("10.0.0.0"), 8)}))
	cfg := newConfig(t, "podtest0")
	n := newNetwork(t, cfg)
	setup(t, n, testPod(t, "a"))
	if want := netip.MustParsePrefix("172.29.0.0/22"); n.builtin.subnets[0] != want {
		t.Errorf("chose %s, want %s", n.builtin.subnets[0], want)
	}
	// It is remembered.
	again := restart(t, cfg)
	if again.builtin.subnets[0] != n.builtin.subnets[0] {
		t.Errorf("remembered %s, chose %s", again.builtin.subnets[0], n.builtin.subnets[0])
	}
}

func TestManyPodsAtOnce(t *testing.T) {
	newLab(t)
	cfg := newConfig(t, "podtest0")
	n := newNetwork(t, cfg)
	const count = 50
	pods := make([]Pod, count)
	for i := range pods {
		pods[i] = testPod(t, fmt.Sprint("pod", i), PortMapping{HostPort: uint16(2000 + i), ContainerPort: 80})
	}
	setup(t, n, pods[0])
	fds := openFiles(t)
	var mu sync.Mutex
	seen := map[netip.Addr]string{}
	each := func(f func(Pod) error) {
		t.Helper()
		var wg sync.WaitGroup
		errs := make([]error, count)
		for i, p := range pods {
			wg.Go(func() { errs[i] = f(p) })
		}
		wg.Wait()
		must(t, errors.Join(errs...))
	}
	up := func(p Pod) error {
		r, err := n.Setup(bg, p)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if other, taken := seen[r.IPs[0]]; taken && other != p.Name {
			return fmt.Errorf("%s and %s have %s", other, p.Name, r.IPs[0])
		}
		seen[r.IPs[0]] = p.Name
		return nil
	}
	each(up)
	each(up)
	if got := len(leaseFiles(t, cfg)); got != count {
		t.Errorf("%d leases for %d pods", got, count)
	}
	each(func(p Pod) error { return n.Teardown(bg, p) })
	each(func(p Pod) error { return n.Teardown(bg, p) })
	if files := leaseFiles(t, cfg); len(files) != 0 {
		t.Errorf("leases left: %v", files)
	}
	if got := n.builtin.pool.InUse(); got != 0 {
		t.Errorf("%d addresses in use with no pods", got)
	}
	if rules := nft(t, "list", "table", "inet", "podtest0"); strings.Contains(rules, "elements") {
		t.Errorf("host ports left:\n%s", rules)
	}
	if after := openFiles(t); len(after) > len(fds) {
		t.Errorf("descriptors before: %v, after: %v", fds, after)
	}
}

func openFiles(t *testing.T) []string {
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	var files []string
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			files = append(files, target)
		}
	}
	slices.Sort(files)
	return files
}

// A Setup that fails half-way leaves nothing.
func TestFailedSetupLeavesNothing(t *testing.T) {
	newLab(t)
	cfg := newConfig(t, "podtest0")
	n := newNetwork(t, cfg)
	setup(t, n, testPod(t, "first"))
	pod := testPod(t, "a", PortMapping{HostPort: 80, ContainerPort: 80})
	// Something else made an eth0.
	in(t, pod.Netns, func() {
		must(t, run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1"))
	})
	_, err := n.Setup(bg, pod)
	if err == nil || !strings.Contains(err.Error(), "has an interface eth0 that is not ours") {
		t.Fatalf("got %v", err)
	}
	notNetns := pod
	notNetns.Netns = filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(notNetns.Netns, nil, 0o600))
	if _, err := n.Setup(bg, notNetns); err == nil || !strings.Contains(err.Error(), "default/a") {
		t.Errorf("a file as a namespace: %v", err)
	}
	ctx, cancel := context.WithCancel(bg)
	cancel()
	if _, err := n.Setup(ctx, testPod(t, "b")); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that was cancelled: %v", err)
	}
	if files := leaseFiles(t, cfg); len(files) != 1 {
		t.Errorf("leases: %v", files)
	}
	ports, err := n.builtin.bridge.Ports()
	must(t, err)
	if len(ports) != 1 || n.builtin.pool.InUse() != 1 {
		t.Errorf("%d links, %d addresses for one pod", len(ports), n.builtin.pool.InUse())
	}
	setup(t, n, testPod(t, "c", PortMapping{HostPort: 80, ContainerPort: 80}))
}
