package conformance

import (
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"podstead/cri/conformance"
	"podstead/engine/config"
	"podstead/test/host"
	"podstead/test/leak"
)

// part are the groups of the suite that are run with each change: the others are
// tests of the engine or of the peer itself, or take too long.
func part(some ...string) []string {
	if host.Whole() {
		return nil
	}
	return some
}

// TestCrun runs the suite on the engine with crun in place of the built-in
// handler.
func TestCrun(t *testing.T) {
	host.Require(t)
	crun, err := exec.LookPath("crun")
	if err != nil {
		t.Skip("crun is not installed")
	}
	leak.Check(t, leak.Scope{Cgroup: host.Cgroup()})
	known := map[string]string{"userns/with the host's network": "handlers of other runtimes have none, and say so"}
	if noHybridCgroups(t) {
		known["resources/huge pages"] = "their controller is on the hierarchy that crun must not see here"
	}
	cdi := t.TempDir()
	conformance.Run(t, conformance.Target{
		Runtime: newEngine(t, cdi, config.Handler{Name: "crun", Path: crun}),
		Image:   busyboxRef, PullImage: registry(t), CgroupParent: host.Cgroup(), CDIDir: cdi,
		Groups: part("container", "process", "security", "mount", "userns", "exec", "stream", "resources"),
		Known:  known,
	})
}

// noHybridCgroups takes cgroup2 out of the test's mounts for its time where v1
// hierarchies are beside it: crun refuses that mixture. It tells whether it did.
func noHybridCgroups(t *testing.T) bool {
	t.Helper()
	const unified = "/sys/fs/cgroup/unified"
	if unix.Unmount(unified, 0) != nil {
		return false // there is no such mixture
	}
	t.Cleanup(func() {
		if err := unix.Mount("cgroup2", unified, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			t.Error(err)
		}
	})
	return true
}
