package conformance

import (
	"context"
	"log/slog"
	"os"
	"testing"

	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"podstead/cgroup"
	"podstead/cri/conformance"
	"podstead/engine/docker"
	"podstead/test/host"
	"podstead/test/leak"
	"podstead/test/peer"
)

// dockerDeviates tells what Docker 20.10 cannot do.
func dockerDeviates(t *testing.T) map[string]string {
	known := map[string]string{
		"sandbox/shared ipc and hostname": "each container has a uts namespace of its own, in which the hostname is the pod's",
		"sandbox/verbose status is JSON":  "Docker does not tell the OCI specification",
		"security/ambient capabilities":   "refused by name",
		"log/binary data":                 "Docker's own log replaces what is not UTF-8",
	}
	bound, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if bound == 0 {
		const why = "Docker gives all capabilities, and this machine does not have them all"
		known["security/privileged"], known["mount/propagation"] = why, why
	}
	return known
}

// TestDocker runs the core of the suite on a Docker Engine, behind a socket, as a
// kubelet calls it. The whole (PODSTEAD_TEST_WHOLE) takes three minutes.
func TestDocker(t *testing.T) {
	host.Require(t)
	leak.Check(t, leak.Scope{Cgroup: host.Cgroup()})
	cdi, settings := t.TempDir(), map[string]any{}
	if peer.DockerHas("--cdi-spec-dir") { // it reads the files itself
		settings["cdi-spec-dirs"] = []string{cdi}
	}
	d := startDocker(t, settings)
	conformance.Run(t, conformance.Target{
		Runtime: serve(t, newDocker(t, d, docker.Config{CDIDirs: []string{cdi}})), Image: busyboxRef, PullImage: registry(t), Private: private(t), CgroupParent: host.Cgroup(), CDIDir: cdi, Known: dockerDeviates(t),
		Groups: part("sandbox", "container", "process", "exec", "stop", "image", "log", "network", "stats", "contract"),
	})
}

// startDocker runs a Docker Engine with the suite's images for the time of the
// test.
func startDocker(t *testing.T, settings map[string]any) *peer.Docker {
	t.Helper()
	images := archive(t)
	d := peer.RunDocker(t, settings)
	f, err := os.Open(images)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := client.New(client.WithHost(d.Endpoint))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	res, err := c.ImageLoad(context.Background(), f)
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Close(); err != nil {
		t.Fatal(err)
	}
	return d
}

// newDocker makes our runtime on a Docker Engine, for the time of the test.
func newDocker(t *testing.T, d *peer.Docker, config docker.Config) *docker.Runtime {
	t.Helper()
	groups, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	config.Endpoint, config.StateDir, config.Cgroups = d.Endpoint, t.TempDir(), groups
	config.Log = slog.New(slog.NewTextHandler(&testLog{t: t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	r, err := docker.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return r
}
