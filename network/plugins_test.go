package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"podstead/sys"
)

const debianPlugins = "/usr/lib/cni"

// needPlugins skips if the plugins of Debian's containernetworking-plugins are
// not there.
func needPlugins(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(debianPlugins, name)); err != nil {
			t.Skip("needs CNI plugins: ", err)
		}
	}
}

func cniConfig(t *testing.T, bin string, files map[string]string) Config {
	cfg := newConfig(t, "podtest0")
	cfg.CNIConfDir, cfg.CNIBinDirs = t.TempDir(), []string{bin}
	for name, text := range files {
		writeConf(t, cfg, name, text)
	}
	return cfg
}

func writeConf(t *testing.T, cfg Config, name, text string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(cfg.CNIConfDir, name), []byte(text), 0o600))
}

func TestRealPlugins(t *testing.T) {
	needRoot(t)
	needPlugins(t, "bridge", "host-local", "portmap", "firewall")
	lab := newLab(t)
	ipam := t.TempDir()
	cfg := cniConfig(t, debianPlugins, map[string]string{"10-test.conflist": fmt.Sprintf(`{
		"cniVersion": "1.0.0", "name": "testnet", "plugins": [
		{"type": "bridge", "bridge": "cnitest0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
		 "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.55.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
		{"type": "portmap", "capabilities": {"portMappings": true}},
		{"type": "firewall", "backend": "iptables"}]}`, ipam)})
	n := newNetwork(t, cfg)
	t.Cleanup(func() { run("ip", "link", "del", "cnitest0") })
	must(t, n.Ready())
	must(t, writeSysctl("ipv4/ip_forward", "1"))
	t.Cleanup(func() { must(t, writeSysctl("ipv4/ip_forward", "0")) })

	a := testPod(t, "a", PortMapping{HostPort: 8080, ContainerPort: 80}, PortMapping{Protocol: "UDP", HostPort: 5353, ContainerPort: 53})
	b := testPod(t, "b")
	ipA, ipB := setup(t, n, a), setup(t, n, b)
	if ipA.String() != "10.55.0.2" || ipB.String() != "10.55.0.3" {
		t.Errorf("got %s and %s", ipA, ipB)
	}
	serve(t, a.Netns, "tcp", ":80", "a")
	serve(t, a.Netns, "udp", ":53", "a")
	serve(t, a.Netns, "tcp", "127.0.0.1:81", "a")
	expect(t, b.Netns, "tcp", "10.55.0.2:80", "a sees 10.55.0.3")
	expect(t, a.Netns, "tcp", "127.0.0.1:81", "a sees 127.0.0.1")
	expect(t, lab.outside, "tcp", "192.0.2.1:8080", "a sees 192.0.2.2")
	expect(t, lab.outside, "udp", "192.0.2.1:5353", "a sees 192.0.2.2")

	// Repeated, and by another process.
	again := restart(t, cfg)
	if got := setup(t, again, a); got != ipA {
		t.Errorf("address changed from %s to %s", ipA, got)
	}
	must(t, again.Reconcile(bg, []string{a.ID, b.ID}))
	expect(t, lab.outside, "tcp", "192.0.2.1:8080", "a sees 192.0.2.2")

	// The configuration is gone, and so is one namespace.
	must(t, os.Remove(filepath.Join(cfg.CNIConfDir, "10-test.conflist")))
	must(t, sys.ReleaseNamespace(b.Netns))
	for range 2 {
		teardown(t, again, a)
		teardown(t, again, b)
	}
	must(t, n.Reconcile(bg, nil)) // with leases that are gone
	for _, f := range filesBelow(ipam) {
		if _, err := netip.ParseAddr(filepath.Base(f)); err == nil {
			t.Errorf("address left: %s", f)
		}
	}
	if left := filesBelow(filepath.Join(cfg.StateDir, "cni")); len(left) > 0 {
		t.Errorf("cache left: %v", left)
	}
	// Without a configuration the built-in network does it.
	if ip := setup(t, n, testPod(t, "c")); !n.builtin.subnets[0].Contains(ip) {
		t.Errorf("got %s", ip)
	}
	must(t, n.Reconcile(bg, nil))
	must(t, n.Destroy(bg))
	// Others' rules are not ours to remove, but the table of iptables is private to this test.
	nft(t, "flush", "ruleset")
}

// fakePlugin writes a plugin that notes what it is told, and then does script.
func fakePlugin(t *testing.T, name, script string) (bin, notes string) {
	bin, notes = t.TempDir(), t.TempDir()
	text := fmt.Sprintf(`#!/bin/sh
cat > %[1]s/$CNI_COMMAND.stdin.tmp
env | grep ^CNI_ | sort > %[1]s/$CNI_COMMAND.env
mv %[1]s/$CNI_COMMAND.stdin.tmp %[1]s/$CNI_COMMAND.stdin
echo "$CNI_COMMAND $CNI_CONTAINERID" >> %[1]s/calls
%[2]s
`, notes, script)
	must(t, os.WriteFile(filepath.Join(bin, name), []byte(text), 0o700))
	return bin, notes
}

const fakeResult = `[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.0.0","interfaces":[{"name":"br"},{"name":"eth0","sandbox":"/x"}],
	"ips":[{"address":"10.1.1.1/24","interface":0},{"address":"10.1.1.9/24","interface":1},{"address":"fd00::9/64","interface":1}]}'
exit 0`

func fakeConf(version, extra string) string {
	return fmt.Sprintf(`{"cniVersion": %q, "name": "fake", "plugins": [{"type": "fake"%s}]}`, version, extra)
}

func TestWhatPluginsAreTold(t *testing.T) {
	needRoot(t)
	bin, notes := fakePlugin(t, "fake", fakeResult)
	cfg := cniConfig(t, bin, map[string]string{"1.conflist": fakeConf("1.0.0",
		`, "capabilities": {"portMappings": true, "bandwidth": true, "dns": true, "ipRanges": true, "cgroupPath": true,
		"mac": true, "ips": true, "aliases": true, "io.kubernetes.cri.pod-annotations": true}`)})
	n := newNetwork(t, cfg)
	must(t, n.SetPodSubnets([]netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")}))
	pod := testPod(t, "web", PortMapping{Protocol: "TCP", HostIP: hostIP, HostPort: 8080, ContainerPort: 80})
	pod.Annotations = map[string]string{ingressBandwidth: "10M", egressBandwidth: "1Gi",
		macAnnotation: "0A:00:00:00:00:01", ipsAnnotation: "10.1.1.9, fd00::9/64"}
	pod.CgroupParent = "/kubepods/pod1"
	pod.DNS = DNS{Servers: []string{"10.0.0.10"}, Searches: []string{"svc.local"}, Options: []string{"ndots:5"}}
	r, err := n.Setup(bg, pod)
	must(t, err)
	if got := fmt.Sprint(r.IPs); got != "[10.1.1.9 fd00::9]" {
		t.Errorf("addresses: %s", got)
	}
	teardown(t, n, pod)

	for _, verb := range []string{"ADD", "DEL"} {
		env, err := os.ReadFile(filepath.Join(notes, verb+".env"))
		must(t, err)
		for _, want := range []string{
			"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=id-web;K8S_POD_UID=uid-web",
			"CNI_CONTAINERID=id-web", "CNI_IFNAME=eth0", "CNI_NETNS=" + pod.Netns, "CNI_PATH=" + bin,
		} {
			if !strings.Contains(string(env), want+"\n") {
				t.Errorf("%s: no %q in:\n%s", verb, want, env)
			}
		}
		stdin, err := os.ReadFile(filepath.Join(notes, verb+".stdin"))
		must(t, err)
		var got struct {
			RuntimeConfig map[string]any
			PrevResult    map[string]any
		}
		must(t, json.Unmarshal(stdin, &got))
		var want map[string]any
		must(t, json.Unmarshal([]byte(`{
			"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}],
			"bandwidth": {"ingressRate": 10000000, "ingressBurst": 4294967295, "egressRate": 1073741824, "egressBurst": 4294967295},
			"dns": {"servers": ["10.0.0.10"], "searches": ["svc.local"], "options": ["ndots:5"]},
			"ipRanges": [[{"subnet": "10.1.1.0/24"}]],
			"cgroupPath": "/kubepods/pod1",
			"mac": "0a:00:00:00:00:01", "ips": ["10.1.1.9", "fd00::9/64"], "aliases": ["web"],
			"io.kubernetes.cri.pod-annotations": {
				"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "1Gi",
				"podstead.io/pod-mac": "0A:00:00:00:00:01", "podstead.io/pod-ips": "10.1.1.9, fd00::9/64"}}`), &want))
		if !reflect.DeepEqual(got.RuntimeConfig, want) {
			t.Errorf("%s: runtimeConfig %v\nwant %v", verb, got.RuntimeConfig, want)
		}
		if verb == "DEL" && got.PrevResult == nil {
			t.Error("DEL: no prevResult")
		}
	}
	for _, key := range []string{ingressBandwidth, macAnnotation, ipsAnnotation} {
		pod.Annotations = map[string]string{key: "lots"}
		if _, err := n.Setup(bg, pod); err == nil || !strings.Contains(err.Error(), "annotation "+key) {
			t.Errorf("%s %q: %v", key, "lots", err)
		}
	}
}

func TestFailingPlugins(t *testing.T) {
	needRoot(t)
	t.Run("ADD fails", func(t *testing.T) {
		bin, notes := fakePlugin(t, "fake", `[ $CNI_COMMAND = ADD ] && { echo '{"code": 11, "msg": "try again later"}'; exit 1; }; exit 0`)
		cfg := cniConfig(t, bin, map[string]string{"1.conflist": fakeConf("1.0.0", "")})
		n := newNetwork(t, cfg)
		_, err := n.Setup(bg, testPod(t, "a"))
		if err == nil || !strings.Contains(err.Error(), "connect pod default/a (id-a): CNI ADD of network fake") || !strings.Contains(err.Error(), "try again later") {
			t.Errorf("got %v", err)
		}
		if calls, _ := os.ReadFile(filepath.Join(notes, "calls")); string(calls) != "ADD id-a\nDEL id-a\n" {
			t.Errorf("calls: %q", calls)
		}
		if files := leaseFiles(t, cfg); len(files) > 0 {
			t.Errorf("leases: %v", files)
		}
	})
	t.Run("DEL fails", func(t *testing.T) {
		bin, _ := fakePlugin(t, "fake", `[ $CNI_COMMAND = DEL ] && { echo oops >&2; exit 1; }; `+fakeResult)
		bin2, _ := fakePlugin(t, "fake", fakeResult)
		cfg := cniConfig(t, bin, map[string]string{"1.conflist": fakeConf("1.0.0", "")})
		n := newNetwork(t, cfg)
		pod := testPod(t, "a")
		setup(t, n, pod)
		if err := n.Teardown(bg, pod); err == nil || !strings.Contains(err.Error(), "oops") {
			t.Errorf("got %v", err)
		}
		if files := leaseFiles(t, cfg); len(files) != 1 {
			t.Errorf("the lease must stay: %v", files)
		}
		must(t, os.Rename(filepath.Join(bin2, "fake"), filepath.Join(bin, "fake")))
		teardown(t, n, pod)
	})
	t.Run("ADD hangs", func(t *testing.T) {
		bin, notes := fakePlugin(t, "fake", `[ $CNI_COMMAND = ADD ] && sleep 1000; exit 0`)
		n := newNetwork(t, cniConfig(t, bin, map[string]string{"1.conflist": fakeConf("1.0.0", "")}))
		ctx, cancel := context.WithCancel(bg)
		done := make(chan error)
		go func() {
			_, err := n.Setup(ctx, testPod(t, "a"))
			done <- err
		}()
		waitFor(t, func() bool { _, err := os.Stat(filepath.Join(notes, "calls")); return err == nil })
		// Another pod is not held up by it.
		must(t, n.Teardown(bg, Pod{ID: "other"}))
		cancel()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		case <-time.After(timeout):
			t.Fatal("Setup goes on after its context ended")
		}
	})
	t.Run("plugin is missing", func(t *testing.T) {
		n := newNetwork(t, cniConfig(t, t.TempDir(), map[string]string{"1.conflist": fakeConf("1.0.0", "")}))
		if err := n.Ready(); err == nil || !strings.Contains(err.Error(), `1.conflist: plugin "fake" is in none of`) {
			t.Errorf("Ready: %v", err)
		}
	})
	t.Run("plugin says it is not ready", func(t *testing.T) {
		bin, _ := fakePlugin(t, "fake", `[ $CNI_COMMAND = STATUS ] && { echo '{"code": 50, "msg": "waiting for the cloud"}'; exit 1; }; exit 0`)
		n := newNetwork(t, cniConfig(t, bin, map[string]string{"1.conflist": fakeConf("1.1.0", "")}))
		if err := n.Ready(); err == nil || !strings.Contains(err.Error(), "waiting for the cloud") {
			t.Errorf("Ready: %v", err)
		}
	})
}

// Whoever loses our records loses no address: the cache knows, too. And garbage
// is collected without harm to other runtimes that share the network.
func TestPluginsFreeWhatNobodyHas(t *testing.T) {
	needRoot(t)
	for _, gc := range []bool{false, true} {
		bin, notes := fakePlugin(t, "fake", strings.Replace(fakeResult, "1.0.0", "1.1.0", 1))
		cfg := cniConfig(t, bin, map[string]string{"1.conflist": fakeConf("1.1.0", "")})
		cfg.CNINoGC = !gc
		// Another runtime has a pod on this network, and so has another instance.
		neighbour := cfg
		neighbour.Name, neighbour.StateDir = "podtest1", filepath.Join(t.TempDir(), "state")
		theirs, err := New(neighbour)
		must(t, err)
		setup(t, theirs, testPod(t, "theirs"))
		cfg.CNICacheDirs = []string{t.TempDir()}
		must(t, os.MkdirAll(filepath.Join(cfg.CNICacheDirs[0], "results"), 0o700))
		must(t, os.WriteFile(filepath.Join(cfg.CNICacheDirs[0], "results", "fake-x-eth0"),
			[]byte(`{"kind": "cniCacheV1", "containerId": "of-containerd", "ifName": "eth0", "networkName": "fake"}`), 0o600))

		n := newNetwork(t, cfg)
		kept, lost := testPod(t, "kept"), testPod(t, "lost")
		setup(t, n, kept)
		setup(t, n, lost)
		must(t, os.Remove(filepath.Join(cfg.StateDir, "leases", "id-lost.json")))
		must(t, os.Remove(filepath.Join(notes, "calls")))
		again := restart(t, cfg)
		must(t, again.Reconcile(bg, []string{kept.ID}))
		again.worker.Wait()
		calls, err := os.ReadFile(filepath.Join(notes, "calls"))
		must(t, err)
		want := "DEL id-lost\n"
		if gc {
			want += "GC \n"
			stdin, err := os.ReadFile(filepath.Join(notes, "GC.stdin"))
			must(t, err)
			if !strings.Contains(string(stdin), `"cni.dev/valid-attachments":[`+
				`{"containerID":"of-containerd","ifname":"eth0"},{"containerID":"id-theirs","ifname":"eth0"},{"containerID":"id-kept","ifname":"eth0"}]`) {
				t.Errorf("GC is told %s", stdin)
			}
		}
		want += "CHECK id-kept\n"
		if string(calls) != want {
			t.Errorf("calls: %q, want %q", calls, want)
		}
		must(t, n.leases.remove("id-lost"))
		teardown(t, theirs, Pod{ID: "id-theirs"})
		must(t, theirs.Destroy(bg))
		must(t, theirs.Close())
	}
}

// What could not be undone at first is a reason to look for more of it.
func TestGarbageIsCollectedAfterAFailedDEL(t *testing.T) {
	needRoot(t)
	refuse := filepath.Join(t.TempDir(), "refuse")
	bin, notes := fakePlugin(t, "fake", `[ $CNI_COMMAND = DEL ] && [ -e `+refuse+` ] && exit 1; `+strings.Replace(fakeResult, "1.0.0", "1.1.0", 1))
	cfg := cniConfig(t, bin, map[string]string{"1.conflist": fakeConf("1.1.0", "")})
	n := newNetwork(t, cfg)
	pod := testPod(t, "a")
	setup(t, n, pod)
	must(t, os.WriteFile(refuse, nil, 0o600))
	if n.Teardown(bg, pod) == nil {
		t.Fatal("a DEL that fails is no error")
	}
	must(t, os.Remove(refuse))
	teardown(t, n, pod)
	n.worker.Wait()
	calls, err := os.ReadFile(filepath.Join(notes, "calls"))
	must(t, err)
	if string(calls) != "ADD id-a\nDEL id-a\nDEL id-a\nGC \n" {
		t.Errorf("calls: %q", calls)
	}
}

// CHECK's word is told, and does no harm to the pod.
func TestCheckFindsFault(t *testing.T) {
	needRoot(t)
	bin, _ := fakePlugin(t, "fake", `[ $CNI_COMMAND = CHECK ] && { echo '{"code": 101, "msg": "route is missing"}'; exit 1; }; `+fakeResult)
	cfg := cniConfig(t, bin, map[string]string{"1.conflist": fakeConf("1.0.0", "")})
	var out bytes.Buffer
	cfg.Log = slog.New(slog.NewTextHandler(&out, nil))
	n := newNetwork(t, cfg)
	pod := testPod(t, "a")
	setup(t, n, pod)
	if err := n.Check(bg, pod.ID); err == nil || !strings.Contains(err.Error(), "CNI CHECK of network fake, eth0: plugin type=\"fake\"") && !strings.Contains(err.Error(), "route is missing") {
		t.Errorf("got %v", err)
	}
	must(t, n.Reconcile(bg, []string{pod.ID}))
	n.worker.Wait()
	if !strings.Contains(out.String(), "route is missing") || !strings.Contains(out.String(), "default/a") {
		t.Errorf("log: %s", out.String())
	}
	if len(leaseFiles(t, cfg)) != 1 {
		t.Error("the pod was disconnected")
	}
	if err := n.Check(bg, "nobody"); err == nil {
		t.Error("a pod that is not connected passes")
	}
}

func TestSeveralNetworks(t *testing.T) {
	needRoot(t)
	needPlugins(t, "ptp", "host-local")
	newLab(t)
	ipam := t.TempDir()
	conf := func(name, subnet string) string {
		return fmt.Sprintf(`{"cniVersion": "1.0.0", "name": %q, "plugins": [{"type": "ptp",
			"ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": %q}]]}}]}`, name, ipam, subnet)
	}
	cfg := cniConfig(t, debianPlugins, map[string]string{
		"10-first.conflist": conf("first", "10.56.0.0/24"), "20-other.conflist": conf("other", "10.57.0.0/24"),
		"30-storage.conflist": conf("storage", "10.58.0.0/24"), "05-bad.conflist": "{"})
	cfg.CNINetworks = []string{"storage"}
	n := newNetwork(t, cfg)
	t.Cleanup(func() { must(t, writeSysctl("ipv4/ip_forward", "0")) }) // ptp turns it on
	must(t, n.Ready())
	pod := testPod(t, "a")
	r, err := n.Setup(bg, pod)
	must(t, err)
	if fmt.Sprint(r.IPs) != "[10.56.0.2]" {
		t.Errorf("got %v", r.IPs)
	}
	in(t, pod.Netns, func() {
		for name, want := range map[string]string{"eth0": "10.56.0.2/24", "eth1": "10.58.0.2/24"} {
			link, err := netlink.LinkByName(name)
			must(t, err)
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
			must(t, err)
			if len(addrs) != 1 || addrs[0].IPNet.String() != want {
				t.Errorf("%s has %v, want %s", name, addrs, want)
			}
		}
	})
	again := restart(t, cfg)
	teardown(t, again, pod)
	must(t, n.leases.remove(pod.ID))
	for _, f := range filesBelow(ipam) {
		if _, err := netip.ParseAddr(filepath.Base(f)); err == nil {
			t.Errorf("address left: %s", f)
		}
	}
	must(t, os.Remove(filepath.Join(cfg.CNIConfDir, "30-storage.conflist")))
	for _, err := range []error{again.Ready(), func() error { _, err := again.Setup(bg, testPod(t, "b")); return err }()} {
		if err == nil || !strings.Contains(err.Error(), `is of the network "storage"`) || !strings.Contains(err.Error(), "05-bad.conflist") {
			t.Errorf("a network that is not there: %v", err)
		}
	}
}

func TestChoiceOfConfiguration(t *testing.T) {
	needRoot(t)
	bin, _ := fakePlugin(t, "fake", `[ $CNI_COMMAND = ADD ] && nsenter --net=$CNI_NETNS sh -c '
		ip link add eth0 type veth peer name eth1 && ip addr add 10.1.1.9/24 dev eth0' >&2
		`+fakeResult)
	cfg := cniConfig(t, bin, nil)
	n := newNetwork(t, cfg)
	first := testPod(t, "first")
	builtin := setup(t, n, first)
	if !n.builtin.subnets[0].Contains(builtin) {
		t.Errorf("no files: got %s", builtin)
	}
	writeConf(t, cfg, "20.conflist", `{"name": "half`)
	for _, err := range []error{n.Ready(), func() error { _, err := n.Setup(bg, testPod(t, "x")); return err }()} {
		if err == nil || !strings.Contains(err.Error(), filepath.Join(cfg.CNIConfDir, "20.conflist")) {
			t.Errorf("only an invalid file: %v", err)
		}
	}
	writeConf(t, cfg, "30.conf", `{"cniVersion": "0.4.0", "name": "one", "type": "fake"}`)
	writeConf(t, cfg, "40.conflist", `{"cniVersion": "0.4.0", "name": "two", "plugins": [{"type": "missing"}]}`)
	writeConf(t, cfg, "00.txt", `no`)
	must(t, n.Ready())
	second := testPod(t, "second")
	if ip := setup(t, n, second); ip.String() != "10.1.1.9" {
		t.Errorf("got %s", ip)
	}
	// Who is connected stays so, and is disconnected by who did it.
	if ip := setup(t, n, first); ip != builtin {
		t.Errorf("address changed from %s to %s", builtin, ip)
	}
	for _, name := range []string{"20.conflist", "30.conf", "40.conflist"} {
		must(t, os.Remove(filepath.Join(cfg.CNIConfDir, name)))
	}
	if ip := setup(t, n, second); ip.String() != "10.1.1.9" {
		t.Errorf("got %s after the configuration was removed", ip)
	}
	teardown(t, n, second)
	teardown(t, n, first)
}
