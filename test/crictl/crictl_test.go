package crictl

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"podstead/test/host"
	"podstead/test/leak"
	"podstead/test/node"
	"podstead/test/peer"
	"podstead/test/programs"
)

// These hand the paths of programs to the tests inside the host.
const (
	crictlVariable   = "PODSTEAD_TEST_CRICTL"
	podsteadVariable = "PODSTEAD_TEST_PODSTEAD"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if !testing.Short() && os.Getenv(crictlVariable) == "" {
		for variable, build := range map[string]func() (string, error){crictlVariable: programs.Crictl, podsteadVariable: programs.Podstead} {
			path, err := build()
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Setenv(variable, path)
		}
	}
	host.Main(m)
}

func newClient(t *testing.T, endpoint string) client {
	t.Helper()
	return client{path: os.Getenv(crictlVariable), endpoint: endpoint}
}

// require skips a test that cannot be run here.
func require(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("building crictl is not short")
	}
	host.Require(t)
}

// TestPodstead walks over "podstead cri".
func TestPodstead(t *testing.T) {
	require(t)
	leak.Check(t, leak.Scope{Cgroup: host.Cgroup()})
	n := node.Run(t, os.Getenv(podsteadVariable), "cri")
	walkBoth(t, n.Endpoint(), true)
}

// TestDocker walks over "podstead cri" on a Docker Engine, and ends it as a
// service manager does.
func TestDocker(t *testing.T) {
	require(t)
	leak.Check(t, leak.Scope{Cgroup: host.Cgroup()})
	d := peer.RunDocker(t, nil)
	n := node.Run(t, os.Getenv(podsteadVariable), "cri", "--backend", "docker", "--docker-endpoint", d.Endpoint)
	crictl := newClient(t, n.Endpoint())
	crictl.metrics = true
	walk(t, crictl)
	if err := n.End(); err != nil {
		t.Errorf("podstead ends with: %v", err)
	}
	if _, err := os.Lstat(n.Run + "/cri.sock"); err == nil {
		t.Error("the socket is left")
	}
}

// TestContainerd checks the walk itself.
func TestContainerd(t *testing.T) {
	require(t)
	walkBoth(t, peer.RunContainerd(t, "", nil).Endpoint, false)
}

// walkBoth walks over a runtime with crictl, and with our own command line,
// which stands in for it.
func walkBoth(t *testing.T, endpoint string, metrics bool) {
	t.Helper()
	crictl := newClient(t, endpoint)
	crictl.metrics = metrics
	walk(t, crictl)
	t.Run("ctl", func(t *testing.T) {
		walk(t, client{path: os.Getenv(podsteadVariable), prefix: []string{"ctl"}, endpoint: endpoint, metrics: metrics})
	})
}
