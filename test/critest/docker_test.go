package critest

import (
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
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

// noUserNamespaces are specs that critest skips on Docker, whose Status says why:
// it has no user namespace for a single pod.
var noUserNamespaces = []string{
	"Security Context UserNamespaces when Host idmap mount support is needed runtime should support NamespaceMode_POD",
	"Security Context UserNamespaces when Host idmap mount support is not needed runtime should fail if container ID 0 is not mapped",
	"Security Context UserNamespaces when Host idmap mount support is not needed runtime should fail if more than one mapping provided",
	"Security Context UserNamespaces when Host idmap mount support is not needed runtime should fail with NamespaceMode_CONTAINER",
	"Security Context UserNamespaces when Host idmap mount support is not needed runtime should fail with NamespaceMode_TARGET",
	"Security Context UserNamespaces when Host idmap mount support is not needed runtime should support NamespaceMode_NODE",
}

// allCapabilities are specs of containers that Docker gives all capabilities that
// there are, whether it has them itself or not: they fail on a machine that does
// not have CAP_SYS_RESOURCE.
var allCapabilities = []string{
	"Container Mount Propagation runtime should support mount propagation mount with 'rprivate' should not support propagation",
	"Container Mount Propagation runtime should support mount propagation mount with 'rshared' should support propagation from host to container and vice versa",
	"Container Mount Propagation runtime should support mount propagation mount with 'rslave' should support propagation from host to container",
	"Security Context SeccompProfilePath runtime should ignore a seccomp profile that blocks setting hostname when privileged",
	"Security Context bucket runtime should support Privileged is true",
	"Security Context bucket runtime should support adding ALL capabilities",
}

func dockerCannot(s spec) string {
	if s.State != "failed" && slices.Contains(noUserNamespaces, s.name()) {
		return "Docker has no user namespace for a single pod"
	}
	return ""
}

func machineCannot(s spec) string {
	bound, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0)
	if err != nil || bound != 0 || !slices.Contains(allCapabilities, s.name()) {
		return ""
	}
	if s.State == "failed" && !strings.Contains(s.Failure.Message, "unable to apply caps: operation not permitted") {
		return "" // that is something else
	}
	return "this machine does not have all capabilities"
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
