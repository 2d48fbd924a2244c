package oci

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/sys"
)

// inNetwork runs f on a thread in a network namespace of its own with pairs of
// devices: what f starts has it for the host's.
func inNetwork(t *testing.T, f func(ip func(args ...string) string)) {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs iproute2: ", err)
	}
	err := sys.OnDisposableThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		f(func(args ...string) string {
			out, err := exec.Command("ip", args...).CombinedOutput()
			if err != nil {
				t.Errorf("ip %v: %v: %s", args, err, out)
			}
			return string(out)
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestNetDevices(t *testing.T) {
	onBoth(t, func(b *box) {
		b.needs("1.4", "1.22")
		b.withNetwork()
		if err := os.Symlink("busybox", b.inside("bin/ip")); err != nil {
			b.Fatal(err)
		}
		b.script("ip addr show dev inside; echo; ip addr show dev c0; ip addr show dev eth0")
		inNetwork(t, func(ip func(...string) string) {
			for _, name := range []string{"a", "b", "c"} {
				ip("link", "add", name+"0", "type", "veth", "peer", "name", name+"1")
				ip("link", "set", name+"0", "mtu", "1400", "up")
			}
			ip("addr", "add", "192.0.2.7/24", "brd", "+", "dev", "a0")
			ip("-6", "addr", "add", "2001:db8::7/64", "nodad", "dev", "a0")
			numbered := "eth%d"
			if !b.ours {
				numbered = "eth0" // runc 1.5 then looks for a device of that name
			}
			b.spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"a0": {Name: "inside"}, "b0": {Name: numbered}, "c0": {}}
			b.write()
			r := b.run("run", "-b", b.bundle, b.id)
			device, rest, _ := strings.Cut(r.stdout, "\n\n")
			for _, want := range []string{"mtu 1400", "192.0.2.7/24 brd 192.0.2.255 scope global", "2001:db8::7/64 scope global", "UP"} {
				if !b.ours && strings.Contains(want, "2001") {
					continue // runc 1.5 loses it
				}
				if !strings.Contains(device, want) {
					b.Errorf("no %q in %+v", want, r)
				}
			}
			if r.code != 0 || !strings.Contains(rest, "eth0") || !strings.Contains(rest, "c0") {
				b.Errorf("%+v", r)
			}
		})
	})
}

// withNetwork gives the container a network namespace.
func (b *box) withNetwork() {
	isNetwork := func(ns specs.LinuxNamespace) bool { return ns.Type == specs.NetworkNamespace }
	if !slices.ContainsFunc(b.spec.Linux.Namespaces, isNetwork) {
		b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
}

func TestNetDevicesRefused(t *testing.T) {
	b := newBox(t, "")
	b.withNetwork()
	inNetwork(t, func(ip func(...string) string) {
		ip("link", "add", "d0", "type", "veth", "peer", "name", "d1")
		for want, devices := range map[string]map[string]specs.LinuxNetDevice{
			`linux.netDevices["none"]`:            {"none": {}},
			`linux.netDevices["lo"]: move as lo`:  {"lo": {}},
			`linux.netDevices["d0"]: move as lo`:  {"d0": {Name: "lo"}},
			`linux.netDevices["a/b"]`:             {"a/b": {}},
			`linux.netDevices["d0"].name: "%s%d"`: {"d0": {Name: "%s%d"}},
		} {
			b.spec.Linux.NetDevices = devices
			b.write()
			b.fails([]string{want}, "run", "-b", b.bundle, b.id)
		}
		if !strings.Contains(ip("-br", "link"), "d0@d1") {
			b.Error("a device that could not be moved is gone")
		}
		b.spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"d0": {}}
		b.without(specs.NetworkNamespace)
		b.write()
		b.fails([]string{"linux.netDevices: needs a network namespace"}, "run", "-b", b.bundle, b.id)
	})
}

// In a user namespace the network namespace is the container's own, and the
// device and its addresses are moved all the same.
func TestNetDevicesInUserNamespace(t *testing.T) {
	b := newBox(t, "")
	for _, err := range []error{
		os.Symlink("busybox", b.inside("bin/ip")),
		os.Chown(b.inside("."), 100000, 100000),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	m := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	b.spec.Linux.UIDMappings, b.spec.Linux.GIDMappings = m, m
	b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	b.spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"a0": {Name: "inside"}}
	b.script("ip addr show dev inside")
	inNetwork(t, func(ip func(...string) string) {
		ip("link", "add", "a0", "type", "veth", "peer", "name", "a1")
		ip("addr", "add", "192.0.2.7/24", "dev", "a0")
		b.write()
		if r := b.run("run", "-b", b.bundle, b.id); !strings.Contains(r.stdout, "192.0.2.7/24") {
			b.Errorf("%+v", r)
		}
	})
}
