package engine

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cgroup/systemd"
	"podstead/cgroup/systemd/systemdtest"
	"podstead/oci/launch"
	testhost "podstead/test/host"
)

// TestSystemdDriver runs pods in slices and containers in scopes, tells so, and
// leaves none behind.
func TestSystemdDriver(t *testing.T) {
	n := newNode(t)
	fake := systemdtest.New(t, "")
	manager := systemd.New(systemd.Options{Addresses: []string{fake.Address}, Park: launch.Park})
	t.Cleanup(func() { manager.Close() })
	n.cfg.Cgroups = n.cfg.Cgroups.WithDriver(manager)
	n.restart()
	driver, err := n.RuntimeConfig(context.Background(), &runtimeapi.RuntimeConfigRequest{})
	if err != nil || driver.Linux.CgroupDriver != runtimeapi.CgroupDriver_SYSTEMD {
		t.Errorf("%v, %v", driver, err)
	}
	_, err = n.RunPodSandbox(context.Background(), &runtimeapi.RunPodSandboxRequest{Config: n.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.CgroupParent = "/path"
	})})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "linux.cgroup_parent") {
		t.Error(err)
	}
	slice := strings.ReplaceAll(testhost.Name(), "-", "_") + "_pods.slice"
	for _, parent := range []string{slice, ""} {
		s := n.run(n.pod(func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.CgroupParent = parent
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD // with a pause process
		}))
		id := n.ready(n.begin(s, n.script(forever, func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 64 << 20}
		})))
		scope := "cri-podstead-" + id + ".scope"
		u := fake.Unit(scope)
		if u == nil || fake.Unit("cri-podstead-"+s+".scope") == nil {
			t.Fatal("no scopes")
		}
		if got, _ := u["Slice"].Value().(string); parent != "" && got != parent || fake.Unit(got) == nil {
			t.Errorf("slice %q", got)
		}
		memory := "MemoryLimit"
		if n.cfg.Cgroups.Unified() {
			memory = "MemoryMax"
		}
		if got := u[memory].Value(); got != uint64(64<<20) {
			t.Errorf("%s: %v", memory, got)
		}
		if out := n.sh(id, "echo hello"); string(out.Stdout) != "hello\n" {
			t.Errorf("%+v", out)
		}
		g := n.cfg.Cgroups.Group(mustRecord(t, n, id).Cgroup)
		if pids, err := g.Procs(); len(pids) != 2 || err != nil { // the shell and its sleep
			t.Errorf("processes %v, %v", pids, err)
		}
		_, err := n.UpdateContainerResources(context.Background(), &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20},
		})
		if got := fake.Unit(scope)[memory].Value(); err != nil || got != uint64(128<<20) {
			t.Errorf("%s: %v, %v", memory, got, err)
		}
		n.restart()
		if _, err := n.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s}); err != nil {
			t.Error(err)
		}
		own, _ := u["Slice"].Value().(string)
		if fake.Unit(scope) != nil || fake.Unit(own) != nil {
			t.Error("units are left")
		}
	}
	// systemd drops slices that it made for others when they are empty.
	if err := n.removeCgroup(context.Background(), strings.ReplaceAll(testhost.Name(), "-", "_")+".slice"); err != nil {
		t.Error(err)
	}
}

func mustRecord(t *testing.T, n *node, id string) containerRecord {
	t.Helper()
	c, err := n.mustContainer(id)
	if err != nil {
		t.Fatal(err)
	}
	return c.record()
}
