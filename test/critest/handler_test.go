package critest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/remote"
	"podstead/image/imagetest"
	"podstead/test/host"
	"podstead/test/leak"
	"podstead/test/node"
)

// TestHandler runs the suite with a handler of another runtime: each pod names
// it.
func TestHandler(t *testing.T) {
	require(t)
	if *handler == "" {
		t.Skip("-handler names no runtime")
	}
	path, err := exec.LookPath(*handler)
	if err != nil {
		t.Skip(err)
	}
	leak.Check(t, leak.Scope{Cgroup: host.Cgroup()})
	name, kind := filepath.Base(path), "oci"
	if strings.HasPrefix(name, "containerd-shim-") {
		kind = "shim"
	}
	if name == "crun" && unix.Unmount("/sys/fs/cgroup/unified", 0) == nil {
		// It refuses controllers in both versions.
		t.Cleanup(func() {
			if err := unix.Mount("cgroup2", "/sys/fs/cgroup/unified", "cgroup2", 0, ""); err != nil {
				t.Error(err)
			}
		})
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "engine.yaml")
	text := fmt.Sprintf("handlers: [{name: other, type: %s, path: %s}]\n", kind, path)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	served := images(t, os.Getenv(standinVariable))
	mirror(t, dir+"/certs.d", imagetest.Registry(t, served))
	n := node.Run(t, os.Getenv(podsteadVariable), "cri", "--certs-dir", dir+"/certs.d", "--config", config)
	critest := retarget(t, os.Getenv(critestVariable), served["k8s-staging-cri-tools/test-image-digest:latest"].Manifest.Digest())
	lacks := lacking(t, n.Endpoint())
	judge(t, run(t, critest, n.Endpoint(), 4, "-runtime-handler", "other"), lacks)
}

// lacking excuses the specs of what the handler says not to have: critest skips
// them.
func lacking(t *testing.T, endpoint string) excuse {
	t.Helper()
	r, err := remote.New(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s, err := r.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(s.RuntimeHandlers, func(h *runtimeapi.RuntimeHandler) bool { return h.Name == "other" })
	if i < 0 {
		t.Fatalf("the handler is not in %v", s.RuntimeHandlers)
	}
	features := s.RuntimeHandlers[i].Features
	return func(s spec) string {
		switch name := s.name(); {
		case s.State != "skipped":
			return ""
		case strings.Contains(name, "UserNamespaces") && !features.UserNamespaces:
			return "the handler has no user namespaces"
		case strings.Contains(name, "recursive readonly") && !features.RecursiveReadOnlyMounts:
			return "the handler has no recursively read-only mounts"
		}
		return ""
	}
}
