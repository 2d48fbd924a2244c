package conformance

import (
	"testing"

	"podstead/cri/conformance"
	"podstead/engine/config"
	"podstead/test/host"
	"podstead/test/leak"
)

// TestShimSuite runs the suite on the engine with containerd's shim for runc in
// place of the built-in handler.
func TestShimSuite(t *testing.T) {
	host.Require(t)
	path := shimProgram(t)
	leak.Check(t, leak.Scope{Cgroup: host.Cgroup()})
	cdi := t.TempDir()
	conformance.Run(t, conformance.Target{
		Runtime: newEngine(t, cdi, config.Handler{Name: "runc-shim", Type: config.Shim, Path: path}),
		Image:   busyboxRef, PullImage: registry(t), CgroupParent: host.Cgroup(), CDIDir: cdi,
		Groups: part("container", "exec", "stream"),
		Known: map[string]string{
			"userns/with the host's network": "handlers of other runtimes have none, and say so",
		},
	})
}
