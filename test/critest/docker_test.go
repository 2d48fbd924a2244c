package critest

import (
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"podstead/image/imagetest"
	"podstead/test/host"
	"podstead/test/leak"
	"podstead/test/node"
	"podstead/test/peer"
)

// TestDocker runs critest on "podstead cri" on a Docker Engine, serially and in
// parallel.
func TestDocker(t *testing.T) {
	if !*withDocker {
		t.Skip("Docker is run with -docker only")
	}
	require(t)
	leak.Check(t, leak.Scope{Cgroup: host.Cgroup()})
	served := images(t, os.Getenv(standinVariable))
	impersonate(t, served)
	d := peer.RunDocker(t, map[string]any{"insecure-registries": mirrored})
	n := node.Run(t, os.Getenv(podsteadVariable), "cri", "--backend", "docker", "--docker-endpoint", d.Endpoint)
	t.Cleanup(func() { removePods(t, n.Endpoint()) })
	critest := retarget(t, os.Getenv(critestVariable), served["k8s-staging-cri-tools/test-image-digest:latest"].Manifest.Digest())
	for _, processes := range []int{1, 4} {
		t.Run(fmt.Sprint(processes), func(t *testing.T) {
			judge(t, run(t, critest, n.Endpoint(), processes), dockerCannot, machineCannot)
		})
	}
}

// dockerCannot are specs of what Docker 20.10 does not have; Status says so.
func dockerCannot(name string) string {
	if strings.Contains(name, "UserNamespaces ") {
		return "Docker has no user namespace for a single pod"
	}
	return ""
}

// machineCannot are specs of privileged containers: Docker gives them all
// capabilities that there are, whether it has them itself or not.
func machineCannot(name string) string {
	bound, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0)
	if err != nil || bound != 0 {
		return ""
	}
	for _, part := range []string{"Privileged is true", "adding ALL capabilities", "when privileged", "Mount Propagation"} {
		if strings.Contains(name, part) {
			return "this machine does not have all capabilities"
		}
	}
	return ""
}

// impersonate serves images in the names of the registries that critest knows:
// Docker has mirrors for its own registry only.
func impersonate(t *testing.T, served map[string]imagetest.Image) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(imagetest.Handler(t, served, nil))
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	hosts := filepath.Join(t.TempDir(), "hosts")
	lines := "127.0.0.1 localhost " + strings.Join(mirrored, " ") + "\n"
	if err := os.WriteFile(hosts, []byte(lines), 0o644); err != nil {
		t.Fatal(err)
	}
	// Mounts are the test's own.
	if err := unix.Mount(hosts, "/etc/hosts", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount("/etc/hosts", unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}
