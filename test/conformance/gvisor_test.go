package conformance

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"podstead/cri/conformance"
	"podstead/engine/config"
	"podstead/test/host"
	"podstead/test/leak"
)

// runscVariable names gVisor's runtime, and its shim is beside it: both take
// minutes to build, see "make test-gvisor".
const runscVariable = "PODSTEAD_TEST_RUNSC"

// gvisorShim is the handler of gVisor's shim, whose runtime has a configuration
// file.
func gvisorShim(t *testing.T) config.Handler {
	t.Helper()
	runsc := os.Getenv(runscVariable)
	if runsc == "" {
		t.Skip(runscVariable + " does not name a runsc")
	}
	file := filepath.Join(t.TempDir(), "runsc.toml")
	const root = "/run/podstead-runsc"
	t.Cleanup(func() {
		// runsc keeps an empty network namespace there for all of its sandboxes.
		if err := errors.Join(host.UnmountBelow(root), os.RemoveAll(root)); err != nil {
			t.Error(err)
		}
	})
	text := fmt.Sprintf("binary_name = %q\nroot = %q\n[runsc_config]\nplatform = \"systrap\"\n", runsc, root)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return config.Handler{
		Name: "gvisor", Type: config.Shim, ConfigPath: file,
		Path: filepath.Join(filepath.Dir(runsc), "containerd-shim-runsc-v1"),
	}
}

// TestGVisorSuite runs what of the suite concerns handlers with gVisor's shim:
// one kernel of its own for each pod.
func TestGVisorSuite(t *testing.T) {
	host.Require(t)
	leak.Check(t, leak.Scope{Cgroup: host.Cgroup()})
	h := gvisorShim(t)
	cdi := t.TempDir()
	conformance.Run(t, conformance.Target{
		Runtime: newEngine(t, cdi, h), Image: busyboxRef, PullImage: registry(t), CgroupParent: host.Cgroup(), CDIDir: cdi,
		Groups: []string{"container", "exec", "stop", "stream", "log", "stats"},
		Known: map[string]string{
			"stop/by a real-time signal":                "its kernel does not pass them on",
			"exec/inherited output does not hang":       "its shim reports the end of an exec when its output has ended",
			"stream/exec: terminal with a size":         "tty finds no name for a terminal that is the host's",
			"stream/port-forward":                       "ports of its own network stack are not the network namespace's",
			"stream/port-forward to the host's network": "as before",
		},
	})
}
