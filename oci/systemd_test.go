package oci

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/cgroup"
	"podstead/cgroup/systemd/systemdtest"
)

// withSystemd gives the box a systemd of its own. The scope is where the box's
// group would be.
func (b *box) withSystemd() (fake *systemdtest.Systemd, scope string) {
	fake = systemdtest.New(b, "")
	b.Setenv("PODSTEAD_TEST_BUS", fake.Address)
	b.spec.Linux.CgroupsPath = "-.slice:podstead-test:" + b.id
	scope = "podstead-test-" + b.id + ".scope"
	b.groupPath = "/" + scope
	return fake, scope
}

func TestSystemdCgroup(t *testing.T) {
	b := newBox(t, "")
	fake, scope := b.withSystemd()
	b.spec.Annotations = map[string]string{"org.systemd.property.TimeoutStopSec": "uint64 9"}
	b.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr[int64](32 << 20)}
	b.spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: ptr[int64](1)}
	b.script("exec sleep 1000")
	b.write()
	b.must("--systemd-cgroup", "create", "-b", b.bundle, b.id)
	b.start() // others than create need no flag
	memory := "MemoryLimit"
	if h, err := cgroup.Detect(); err == nil && h.Unified() {
		memory = "MemoryMax"
	}
	u := fake.Unit(scope)
	for name, want := range map[string]any{memory: uint64(32 << 20), "TasksMax": uint64(1), "TimeoutStopUSec": uint64(9e6), "Delegate": true, "DevicePolicy": "strict"} {
		if got := u[name].Value(); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if s, err := b.group().Stats(); err != nil || s.Pids != 1 || s.MemoryLimitBytes != 32<<20 {
		t.Errorf("%+v, %v", s, err)
	}
	b.must("update", "--memory", "67108864", "--pids-limit", "7", b.id)
	if u := fake.Unit(scope); u[memory].Value() != uint64(64<<20) || u["TasksMax"].Value() != uint64(7) {
		t.Errorf("%s %v, TasksMax %v", memory, u[memory], u["TasksMax"])
	}
	b.must("exec", b.id, "true")
	b.must("delete", "-f", b.id)
	if fake.Unit(scope) != nil {
		t.Error("the scope is left")
	}
}

// TestSystemdFails: what goes wrong with systemd, or after it, leaves nothing.
func TestSystemdFails(t *testing.T) {
	b := newBox(t, "")
	fake, scope := b.withSystemd()
	create := func(want ...string) {
		t.Helper()
		b.write()
		b.fails(want, "--systemd-cgroup", "create", "-b", b.bundle, b.id)
		if _, err := os.Stat(filepath.Join(b.root, b.id)); err == nil || b.group().Exists() || fake.Unit(scope) != nil {
			t.Errorf("%s: directory, group or unit is left", want)
		}
	}
	fake.FailNext("failed")
	create("linux.cgroupsPath", `job ended as "failed"`)
	b.spec.Process.Args = []string{"/no/such"}
	create("/no/such")
	b.spec.Process.Args = []string{"true"}
	b.spec.Annotations = map[string]string{"org.systemd.property.X": "1"}
	create("org.systemd.property.X")
	b.spec.Annotations = nil
	path := b.spec.Linux.CgroupsPath
	b.spec.Linux.CgroupsPath = "/podstead-test"
	create("linux.cgroupsPath", "slice:prefix:name")
	b.spec.Linux.CgroupsPath = path
	b.Setenv("PODSTEAD_TEST_BUS", "unix:path=/no/such")
	create("systemd cannot be reached")
	if r := b.run("list"); r.code != 0 || strings.Contains(r.stdout, b.id) {
		t.Errorf("%+v", r)
	}
}

// TestRealSystemd does it with the host's, where that is in charge (docs/testing.md).
func TestRealSystemd(t *testing.T) {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		t.Skip("no systemd runs here")
	}
	t.Cleanup(func() { // a slice stays when its last scope goes
		if out, err := exec.Command("systemctl", "stop", "podstead_test.slice").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	onBoth(t, func(b *box) {
		name := strings.ReplaceAll(b.id, "-", "_")
		b.spec.Linux.CgroupsPath = "podstead_test.slice:oci:" + name
		b.groupPath = "/podstead_test.slice/oci-" + name + ".scope"
		b.spec.Annotations = map[string]string{"org.systemd.property.TimeoutStopSec": "uint64 9"}
		b.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr[int64](32 << 20)}
		b.spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: ptr[int64](20)}
		b.spec.Linux.Resources.CPU = &specs.LinuxCPU{Quota: ptr[int64](50000), Period: ptr[uint64](100000), Cpus: "0"}
		b.write()
		b.must("--systemd-cgroup", "create", "-b", b.bundle, b.id)
		b.must("--systemd-cgroup", "start", b.id)
		show := func(property, want string) {
			b.Helper()
			out, err := exec.Command("systemctl", "show", "-P", property, filepath.Base(b.groupPath)).CombinedOutput()
			if got := strings.TrimSpace(string(out)); err != nil || got != want {
				b.Errorf("%s: %s, %v, want %s", property, got, err, want)
			}
		}
		for property, want := range map[string]string{
			"ActiveState": "active", "Slice": "podstead_test.slice", "MemoryMax": "33554432", "TasksMax": "20", "Delegate": "yes",
			"CPUQuotaPerSecUSec": "500ms", "AllowedCPUs": "0", "TimeoutStopUSec": "9s", "ControlGroup": b.groupPath, "DevicePolicy": "strict",
		} {
			show(property, want)
		}
		if out, err := exec.Command("systemctl", "daemon-reload").CombinedOutput(); err != nil {
			b.Errorf("%v: %s", err, out)
		}
		if got := b.must("--systemd-cgroup", "exec", b.id, "sh", "-c", "head -c 3 /dev/zero >/dev/null && echo devices work"); got != "devices work\n" {
			b.Error(got)
		}
		b.must("--systemd-cgroup", "update", "--memory", "67108864", b.id)
		show("MemoryMax", "67108864")
		b.must("--systemd-cgroup", "delete", "-f", b.id)
		show("LoadState", "not-found")
	})
}
