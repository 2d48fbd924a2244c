package oci

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/cgroup"
)

// limitedBox gives a user's box limits that a delegated group can have.
func limitedBox(t *testing.T) *box {
	h, err := cgroup.Detect()
	if err != nil || !h.Unified() {
		t.Skip("needs cgroup v2: ", err)
	}
	b := asUser(t)
	b.spec.Linux.Resources = &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr[int64](32 << 20)},
		Pids:   &specs.LinuxPids{Limit: ptr[int64](9)},
	}
	b.script("exec sleep 1000")
	return b
}

// isLimited checks that a user's container, which runs, is in its group, and
// feels the limits; that they can be changed, and all of it paused.
func (b *box) isLimited() {
	b.Helper()
	own, err := os.ReadFile("/proc/" + strconv.Itoa(b.state().Pid) + "/cgroup")
	if err != nil || strings.TrimSpace(string(own)) != "0::"+b.groupPath {
		b.Errorf("it is in %s, %v, want %s", own, err, b.groupPath)
	}
	b.holds("memory.max", "33554432")
	b.holds("pids.max", "9")
	const hungry = "busybox dd if=/dev/zero of=/dev/null bs=64M count=1; echo ended with $?"
	if got := b.must("exec", b.id, "sh", "-c", hungry); got != "ended with 137\n" {
		b.Errorf("with 64 MiB: %q", got)
	}
	const many = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 & done"
	if r := b.run("exec", b.id, "sh", "-c", many); !strings.Contains(r.stderr, "can't fork") {
		b.Errorf("ten processes: %+v", r)
	}
	b.must("update", "--pids-limit", "20", "--memory", "67108864", b.id)
	b.holds("memory.max", "67108864")
	b.holds("pids.max", "20")
	b.must("pause", b.id)
	b.isStatus(statusPaused)
	b.holds("cgroup.freeze", "1")
	b.must("resume", b.id)
	b.isStatus(specs.StateRunning)
}

// holds checks a file of the container's group.
func (b *box) holds(file, want string) {
	b.Helper()
	got, err := os.ReadFile(filepath.Join(b.group().Dir(), file))
	if err != nil || strings.TrimSpace(string(got)) != want {
		b.Errorf("%s: %s, %v, want %s", file, got, err, want)
	}
}

// TestDelegated: a user to whom a part of the tree was given runs limited
// containers in it, beside the group that they are in.
func TestDelegated(t *testing.T) {
	b := limitedBox(t)
	h, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	outer := h.Group("/podstead-test-" + b.id)
	t.Cleanup(func() {
		if err := errors.Join(outer.Kill(context.Background()), outer.Remove(context.Background())); err != nil {
			t.Error(err)
		}
	})
	top := outer.Child("given")
	self := top.Child("user")
	if err := self.Create(); err != nil {
		t.Fatal(err)
	}
	for _, g := range []*cgroup.Group{top, outer} { // not all controllers are given
		if err := os.WriteFile(filepath.Join(g.Dir(), "cgroup.subtree_control"), []byte("-cpuset -io"), 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range []*cgroup.Group{top, self} {
		for _, name := range []string{"", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} {
			if err := os.Chown(filepath.Join(g.Dir(), name), daemonUser, daemonUser); err != nil {
				t.Fatal(err)
			}
		}
	}
	if b.within, err = os.Open(self.Dir()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		b.within.Close()
		b.within = nil
	}()
	b.groupPath = top.Path() + "/podstead-oci-" + b.id
	b.spec.Linux.Resources.CPU = &specs.LinuxCPU{Quota: ptr[int64](50000), Period: ptr[uint64](100000), Shares: ptr[uint64](512)}
	b.write()
	b.own()
	if r := b.run("create", "-b", b.bundle, b.id); r.code != 0 || r.stderr != "" {
		t.Fatalf("%+v", r)
	}
	b.start()
	b.holds("cpu.max", "50000 100000")
	b.isLimited()
	b.must("kill", "--all", b.id, "KILL")
	b.stopped()
	b.must("delete", b.id)
	entries, err := os.ReadDir(top.Dir())
	for _, e := range entries {
		if e.IsDir() && e.Name() != "user" {
			t.Errorf("left in the delegated group: %s", e.Name())
		}
	}
	if err != nil {
		t.Error(err)
	}
}

// TestRealSystemdUser does it in scopes of the user's own systemd, from a scope
// of theirs, as a login or podman would.
func TestRealSystemdUser(t *testing.T) {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		t.Skip("no systemd runs here")
	}
	b := limitedBox(t)
	unit := "user@" + strconv.Itoa(daemonUser) + ".service"
	if out, err := exec.Command("systemctl", "start", unit).CombinedOutput(); err != nil {
		j, _ := exec.Command("journalctl", "-n", "60", "--no-pager").CombinedOutput()
		t.Skipf("no manager of user %d: %v: %s\n%s", daemonUser, err, out, j)
	}
	root, err := exec.Command("systemctl", "show", "-P", "ControlGroup", unit).Output()
	if err != nil {
		t.Fatal(err)
	}
	b.user = "/run/user/" + strconv.Itoa(daemonUser)
	b.through = []string{"systemd-run", "--user", "--scope", "--quiet", "--"}
	name := strings.ReplaceAll(b.id, "-", "_")
	b.spec.Linux.CgroupsPath = "podstead_test.slice:oci:" + name
	b.groupPath = strings.TrimSpace(string(root)) + "/podstead_test.slice/oci-" + name + ".scope"
	b.write()
	b.own()
	if r := b.run("--systemd-cgroup", "create", "-b", b.bundle, b.id); r.code != 0 || r.stderr != "" {
		t.Fatalf("%+v", r)
	}
	b.start()
	b.isLimited()
	show := func(property, want string) {
		t.Helper()
		cmd := exec.Command("systemctl", "--user", "show", "-P", property, path.Base(b.groupPath))
		b.asUser(cmd)
		out, err := cmd.CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", property, got, err, want)
		}
	}
	for property, want := range map[string]string{
		"ActiveState": "active", "Slice": "podstead_test.slice", "MemoryMax": "67108864", "TasksMax": "20", "Delegate": "yes", "ControlGroup": b.groupPath,
	} {
		show(property, want)
	}
	b.must("kill", "--all", b.id, "KILL")
	b.stopped()
	b.must("delete", b.id)
	show("LoadState", "not-found")
}
