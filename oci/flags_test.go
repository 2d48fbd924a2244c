package oci

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestNoPivot runs a container in a root that was not switched to, with a hook
// (for which the root is attached at its path) and without.
func TestNoPivot(t *testing.T) {
	onBoth(t, func(b *box) {
		b.script("ls -d /bin /proc/self /dev/null; ls /usr /host; readlink /proc/self/root; echo $(cat /proc/self/mountinfo | head -n 1 | tr ' ' '\\n' | head -n 5 | tail -n 1)")
		for _, hooks := range []*specs.Hooks{nil, {CreateRuntime: []specs.Hook{{Path: "/bin/true"}}}} {
			b.spec.Hooks = hooks
			b.write()
			r := b.run("run", "--no-pivot", "-b", b.bundle, b.id)
			if !strings.HasPrefix(r.stdout, "/bin\n/dev/null\n/proc/self\n/\n") {
				b.Errorf("%+v", r)
			}
		}
	})
}

// TestKeyring: a container has a session keyring of its own, unless the caller's
// is to be kept.
func TestKeyring(t *testing.T) {
	onBoth(t, func(b *box) {
		b.spec.Linux.MaskedPaths = nil
		b.script("cat /proc/keys")
		b.write()
		if r := b.run("run", "-b", b.bundle, b.id); !strings.Contains(r.stdout, "_ses") {
			b.Errorf("%+v", r)
		}
		b.must("run", "--no-new-keyring", "-b", b.bundle, b.id)
	})
}

func TestExecInSubgroups(t *testing.T) {
	b := newBox(t, "")
	b.up()
	memory := b.group().JoinFile("memory")
	if memory == "" { // cgroup v2
		if err := os.Mkdir(filepath.Join(b.group().Dir(), "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		if got := b.must("exec", "--cgroup", "sub", b.id, "cat", "/proc/self/cgroup"); got != "0::/sub\n" {
			t.Error(got)
		}
		b.fails([]string{"--cgroup memory:sub", "memory"}, "exec", "--cgroup", "memory:sub", b.id, "true")
		b.fails([]string{"--cgroup nosuch", "no such group"}, "exec", "--cgroup", "nosuch", b.id, "true")
		return
	}
	sub := filepath.Join(filepath.Dir(memory), "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	out := b.must("exec", "--cgroup", "memory:sub", b.id, "cat", "/proc/self/cgroup")
	if !strings.Contains(out, ":memory:/sub\n") || strings.Contains(out, ":pids:/sub\n") {
		t.Error(out) // seen from the container's own cgroup namespace
	}
	b.fails([]string{"--cgroup pids:sub", "no such group"}, "exec", "--cgroup", "pids:sub", b.id, "true")
	b.fails([]string{"--cgroup nosuch:sub", "nosuch"}, "exec", "--cgroup", "nosuch:sub", b.id, "true")
	b.fails([]string{"memory:/../x"}, "exec", "--cgroup", "memory:/../x", b.id, "true")
}

// TestUpdateDevices gives a running container a device, and takes it away, as
// callers do that pass all of linux.resources.
func TestUpdateDevices(t *testing.T) {
	b := newBox(t, "")
	b.spec.Process.Capabilities.Bounding = append(b.spec.Process.Capabilities.Bounding, "CAP_MKNOD")
	b.spec.Process.Capabilities.Permitted = append(b.spec.Process.Capabilities.Permitted, "CAP_MKNOD")
	b.spec.Process.Capabilities.Effective = append(b.spec.Process.Capabilities.Effective, "CAP_MKNOD")
	b.up()
	b.must("exec", b.id, "mknod", "/nothing", "c", "1", "10")
	for _, rules := range []struct {
		json, want string
	}{
		{`{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":10,"access":"rw"}]}`, "No such device"},
		{`{"devices":[{"allow":false,"access":"rwm"}]}`, "not permitted"},
	} {
		cmd := b.cmd("update", "-r", "-", b.id)
		cmd.Stdin = strings.NewReader(rules.json)
		if r := b.runWith(cmd); r.code != 0 {
			t.Fatal(r.stderr)
		}
		if r := b.run("exec", b.id, "sh", "-c", "exec 3</nothing"); !strings.Contains(r.stderr, rules.want) {
			t.Errorf("%s: %+v", rules.json, r)
		}
	}
}

func TestEventsForm(t *testing.T) {
	onBoth(t, func(b *box) {
		b.spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: ptr[int64](77)}
		b.up()
		var e struct {
			Data struct {
				CPU struct {
					Usage      struct{ Total, Kernel, User *uint64 }
					Throttling map[string]uint64
				}
				Memory struct {
					Usage struct{ Limit, Usage, Failcnt *uint64 }
					Raw   map[string]uint64
				}
				Pids     struct{ Current, Limit uint64 }
				Hugetlb  map[string]struct{ Failcnt *uint64 }
				Blkio    map[string]any
				IntelRdt map[string]any `json:"intel_rdt"`
			}
		}
		out := b.must("events", "--stats", b.id)
		if err := json.Unmarshal([]byte(out), &e); err != nil || e.Data.Pids.Limit != 77 || e.Data.CPU.Usage.User == nil ||
			e.Data.Memory.Usage.Failcnt == nil || e.Data.Hugetlb == nil || e.Data.Blkio == nil || e.Data.IntelRdt == nil {
			b.Errorf("%v: %s", err, out)
		}
	})
}

// TestHookAllowsDevice: what a hook of a device's vendor allows stays allowed.
func TestHookAllowsDevice(t *testing.T) {
	onBoth(t, func(b *box) {
		dir := "/sys/fs/cgroup/devices"
		if _, err := os.Stat(dir + "/devices.allow"); err != nil {
			b.Skip("needs cgroup v1")
		}
		//nolint:staticcheck // what vendors use
		b.spec.Hooks = &specs.Hooks{Prestart: []specs.Hook{shellHook("echo 'c 1:10 rw' > " + dir + b.spec.Linux.CgroupsPath + "/devices.allow")}}
		b.spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/nothing", Type: "c", Major: 1, Minor: 10}}
		b.script("exec 3</dev/nothing")
		b.write()
		if r := b.run("run", "-b", b.bundle, b.id); !strings.Contains(r.stderr, "No such device") {
			b.Errorf("%+v", r)
		}
	})
}
