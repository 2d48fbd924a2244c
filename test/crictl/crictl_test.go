package crictl

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

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
	n, err := node.Start(t.Context(), os.Getenv(podsteadVariable), filepath.Join(t.TempDir(), "podstead"), "cri")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(n.LogTail())
		}
		if err := n.Stop(); err != nil {
			t.Error(err)
		}
	})
	crictl := newClient(t, n.Endpoint())
	crictl.metrics = true
	walk(t, crictl)
	// Our own command line stands in for crictl.
	t.Run("ctl", func(t *testing.T) {
		walk(t, client{path: os.Getenv(podsteadVariable), prefix: []string{"ctl"}, endpoint: n.Endpoint(), metrics: true})
	})
}

// TestContainerd checks the walk itself.
func TestContainerd(t *testing.T) {
	require(t)
	const pauseRef = "test.local/pause:1"
	dir := t.TempDir()
	c, err := peer.StartContainerd(t.Context(), filepath.Join(dir, "containerd"), pauseRef)
	if errors.Is(err, peer.ErrNotInstalled) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.LogTail())
		}
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	pause, err := peer.Pause()
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "pause.tar")
	if err := peer.Archive(archive, map[string]v1.Image{pauseRef: pause}); err != nil {
		t.Fatal(err)
	}
	if err := c.Import(t.Context(), archive); err != nil {
		t.Fatal(err)
	}
	walk(t, newClient(t, c.Endpoint))
	t.Run("ctl", func(t *testing.T) {
		walk(t, client{path: os.Getenv(podsteadVariable), prefix: []string{"ctl"}, endpoint: c.Endpoint})
	})
}
