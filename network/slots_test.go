package network

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"podstead/sys"
)

// slotNetwork is a network that keeps slots ready, once it has its first pod.
func slotNetwork(t testing.TB, cfg Config, slots int) *Network {
	t.Helper()
	cfg.Slots = slots
	n := newNetwork(t, cfg)
	setup(t, n, testPod(t, "first"))
	awaitSlots(t, n, slots)
	return n
}

func readySlots(n *Network) int {
	n.slots.mu.Lock()
	defer n.slots.mu.Unlock()
	return len(n.slots.ready)
}

func awaitSlots(t testing.TB, n *Network, want int) {
	t.Helper()
	waitFor(t, func() bool { return readySlots(n) == want })
}

// slotPod is a pod in the namespace of a slot.
func slotPod(t testing.TB, n *Network, name string, ports ...PortMapping) Pod {
	t.Helper()
	pod := Pod{ID: "id-" + name, Namespace: "default", Name: name, Netns: filepath.Join(t.TempDir(), "net"), Ports: ports}
	made, err := n.Namespace(pod.ID, pod.Netns)
	must(t, err)
	if !made {
		t.Fatalf("no slot for %s", name)
	}
	t.Cleanup(func() { must(t, sys.ReleaseNamespace(pod.Netns)) })
	return pod
}

func TestSlots(t *testing.T) {
	lab := newLab(t)
	cfg := newConfig(t, "podtest0")
	n := slotNetwork(t, cfg, 3)
	if files := leaseFiles(t, cfg); len(files) != 1 {
		t.Errorf("slots have leases: %v", files)
	}
	a := slotPod(t, n, "a", PortMapping{HostPort: 8080, ContainerPort: 80})
	made := n.slots.claimed[a.ID].link
	v4, v6 := setupBoth(t, n, a)
	if got := n.leases.get(a.ID).Link; got != made {
		t.Errorf("Setup made the link %s although %s was ready", got, made)
	}
	b := testPod(t, "b") // who brings a namespace keeps it
	ipB := setup(t, n, b)
	if ipB == v4 {
		t.Errorf("%s was given out twice", ipB)
	}
	serve(t, a.Netns, "tcp", ":80", "a")
	expect(t, lab.outside, "tcp", "192.0.2.1:8080", "a sees 192.0.2.2")
	expect(t, b.Netns, "tcp", at(v4, "80"), "a sees "+ipB.String())
	expect(t, "", "tcp", at(v6, "80"), "a sees "+n.builtin.subnets[1].Addr().Next().String())
	link, err := netlink.LinkByName(n.leases.get(a.ID).Link)
	must(t, err)
	if link.Attrs().Alias != "pod default/a id-a" {
		t.Errorf("alias %q", link.Attrs().Alias)
	}
	if again := setup(t, n, a); again != v4 {
		t.Errorf("second Setup gave %s, first %s", again, v4)
	}
	awaitSlots(t, n, 3)
	teardown(t, n, a)
	teardown(t, n, a)
	if _, err := ask(t, "", "tcp", "127.0.0.1:8080"); err == nil {
		t.Error("host port answers after Teardown")
	}
}

// What a pod claimed and never got further with is given back.
func TestSlotOfAPodThatFails(t *testing.T) {
	newLab(t)
	n := slotNetwork(t, newConfig(t, "podtest0"), 2)
	setup(t, n, testPod(t, "web", PortMapping{HostPort: 80, ContainerPort: 80}))
	inUse := func() int {
		n.builtin.mu.Lock()
		defer n.builtin.mu.Unlock()
		return n.builtin.pool.InUse()
	}
	never := slotPod(t, n, "never")
	teardown(t, n, never)
	teardown(t, n, never)
	taken := slotPod(t, n, "taken", PortMapping{HostPort: 80, ContainerPort: 80})
	if _, err := n.Setup(bg, taken); err == nil || !strings.Contains(err.Error(), "host port 80/TCP is taken by pod default/web") {
		t.Errorf("got %v", err)
	}
	teardown(t, n, taken)
	awaitSlots(t, n, 2)
	bad := slotPod(t, n, "bad")
	bad.Annotations = map[string]string{ingressBandwidth: "x"}
	if _, err := n.Setup(bg, bad); err == nil {
		t.Error("a bandwidth of x is accepted")
	}
	teardown(t, n, bad)
	awaitSlots(t, n, 2)
	if got := inUse(); got != 4 {
		t.Errorf("%d addresses in use by 2 pods and 2 slots", got)
	}
	// The same path again: a file is in the way.
	made, err := n.Namespace("x", bad.Netns)
	if made || err == nil {
		t.Errorf("bound over a file: %v, %v", made, err)
	}
	awaitSlots(t, n, 2)
	if got := inUse(); got != 4 {
		t.Errorf("%d addresses in use by 2 pods and 2 slots", got)
	}
}

// Slots are never in the way of pods: not with their addresses, nor after the
// bridge was taken away, nor if plugins are to connect pods now.
func TestSlotsGiveWay(t *testing.T) {
	lab := newLab(t)
	t.Run("addresses", func(t *testing.T) {
		cfg := newConfig(t, "podtest1")
		cfg.Subnets = prefixes("10.9.0.8/29")
		n := slotNetwork(t, cfg, 3)
		for i := range 4 {
			setup(t, n, testPod(t, fmt.Sprint("pod", i)))
		}
		if _, err := n.Setup(bg, testPod(t, "more")); err == nil || !strings.Contains(err.Error(), "all 5 are in use") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("bridge", func(t *testing.T) {
		n := slotNetwork(t, newConfig(t, "podtest1"), 2)
		pod := slotPod(t, n, "a", PortMapping{HostPort: 8080, ContainerPort: 80})
		link, err := netlink.LinkByName("podtest1")
		must(t, err)
		must(t, netlink.LinkDel(link))
		setup(t, n, pod)
		serve(t, pod.Netns, "tcp", ":80", "a")
		expect(t, lab.outside, "tcp", "192.0.2.1:8080", "a sees 192.0.2.2")
		awaitSlots(t, n, 2)
		b := slotPod(t, n, "b")
		setup(t, n, b)
		expect(t, b.Netns, "tcp", "192.0.2.1:8080", "a sees "+n.builtin.subnets[0].Addr().Next().String())
	})
	t.Run("subnets", func(t *testing.T) {
		n := slotNetwork(t, newConfig(t, "podtest1"), 2)
		teardown(t, n, Pod{ID: "id-first"})
		must(t, n.SetPodSubnets(prefixes("10.60.0.0/24")))
		awaitSlots(t, n, 2)
		if ip := setup(t, n, slotPod(t, n, "a")); !prefixes("10.60.0.0/24")[0].Contains(ip) {
			t.Errorf("got %s", ip)
		}
	})
	t.Run("plugins", func(t *testing.T) {
		bin, _ := fakePlugin(t, "fake", fakeResult)
		cfg := cniConfig(t, bin, nil)
		cfg.Name = "podtest1"
		n := slotNetwork(t, cfg, 2)
		claimed := slotPod(t, n, "claimed")
		writeConf(t, cfg, "1.conflist", fakeConf("1.0.0", ""))
		if made, err := n.Namespace("id-x", filepath.Join(t.TempDir(), "net")); made || err != nil {
			t.Errorf("a slot for plugins: %v, %v", made, err)
		}
		if readySlots(n) != 0 {
			t.Errorf("%d slots are kept for nobody", readySlots(n))
		}
		if ip := setup(t, n, claimed); !n.builtin.subnets[0].Contains(ip) {
			t.Errorf("whose namespace is connected already got %s", ip)
		}
	})
}

// Nothing that Close and Destroy leave behind would be the slots'. newNetwork sees
// to it that nothing is left on the host.
func TestSlotsEndWithTheNetwork(t *testing.T) {
	newLab(t)
	n := slotNetwork(t, newConfig(t, "podtest0"), 4)
	teardown(t, n, Pod{ID: "id-first"})
	must(t, n.Destroy(bg))
	setup(t, n, testPod(t, "again"))
	awaitSlots(t, n, 4)
	must(t, n.Close())
	if readySlots(n) != 0 {
		t.Errorf("%d slots after Close", readySlots(n))
	}
}

func TestManySlotsAtOnce(t *testing.T) {
	newLab(t)
	n := slotNetwork(t, newConfig(t, "podtest0"), 8)
	const count = 40
	var mu sync.Mutex
	slotted := 0
	ips := map[string]bool{}
	errs := make([]error, count)
	var wg sync.WaitGroup
	dirs := make([]string, count)
	for i := range dirs {
		dirs[i] = t.TempDir()
	}
	for i := range count {
		wg.Go(func() {
			pod := Pod{ID: fmt.Sprint("id-", i), Namespace: "default", Name: fmt.Sprint("pod", i), Netns: filepath.Join(dirs[i], "net")}
			errs[i] = func() error {
				made, err := n.Namespace(pod.ID, pod.Netns)
				if err != nil {
					return err
				}
				if !made {
					if err := sys.NewNamespaces(dirs[i], []string{sys.NetNamespace}, nil); err != nil {
						return err
					}
				}
				r, err := n.Setup(bg, pod)
				if err != nil {
					return err
				}
				mu.Lock()
				if made {
					slotted++
				}
				if ips[r.IPs[0].String()] {
					err = fmt.Errorf("%s was given out twice", r.IPs[0])
				}
				ips[r.IPs[0].String()] = true
				mu.Unlock()
				if i%2 == 0 {
					err = errors.Join(err, n.Teardown(bg, pod), sys.ReleaseNamespace(pod.Netns))
					mu.Lock()
					delete(ips, r.IPs[0].String())
					mu.Unlock()
				}
				return err
			}()
		})
	}
	wg.Wait()
	must(t, errors.Join(errs...))
	t.Cleanup(func() {
		for _, dir := range dirs {
			must(t, sys.ReleaseNamespace(filepath.Join(dir, "net")))
		}
	})
	if slotted < 8 {
		t.Errorf("%d pods had a slot", slotted)
	}
	awaitSlots(t, n, 8)
	n.builtin.mu.Lock()
	defer n.builtin.mu.Unlock()
	if got := n.builtin.pool.InUse(); got != 1+count/2+8 {
		t.Errorf("%d addresses in use by %d pods and 8 slots", got, 1+count/2)
	}
}

// BenchmarkSlot prints the median times of Namespace and Setup with a slot, and of
// making the namespace and Setup without one.
func BenchmarkSlot(b *testing.B) {
	needRoot(b)
	for _, slots := range []int{0, 1} {
		b.Run(fmt.Sprint("slots=", slots), func(b *testing.B) {
			cfg := newConfig(b, "podbench0")
			cfg.Slots = slots
			n := newNetwork(b, cfg)
			setup(b, n, testPod(b, "first"))
			var took []float64
			for b.Loop() {
				awaitSlots(b, n, slots)
				dir := b.TempDir()
				pod := Pod{ID: "id", Namespace: "default", Name: "pod", Netns: filepath.Join(dir, sys.NetNamespace)}
				start := time.Now()
				made, err := n.Namespace(pod.ID, pod.Netns)
				must(b, err)
				if !made {
					must(b, sys.NewNamespaces(dir, []string{sys.NetNamespace}, nil))
				}
				setup(b, n, pod)
				took = append(took, float64(time.Since(start).Microseconds())/1000)
				teardown(b, n, pod)
				must(b, sys.ReleaseNamespace(pod.Netns))
			}
			slices.Sort(took)
			b.ReportMetric(took[len(took)/2], "ms/pod")
			b.ReportMetric(0, "ns/op")
		})
	}
}
