package engine

import (
	"context"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const limitFile = `cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; cat /proc/1/oom_score_adj`

// TestUpdateThatCannotBeRecorded puts everything back.
func TestUpdateThatCannotBeRecorded(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	limits := func(memory, adj int64) *runtimeapi.LinuxContainerResources {
		return &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: memory, OomScoreAdj: adj}
	}
	c := n.ready(n.begin(n.run(n.pod()), n.script(forever, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = limits(64<<20, 500)
	})))
	if got := string(n.sh(c, limitFile).Stdout); got != "67108864\n500\n" {
		t.Fatalf("limits are %q", got)
	}
	update := &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c, Linux: limits(96<<20, 600)}
	dir := n.containerFile(c, "")
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	_, err := n.UpdateContainerResources(ctx, update)
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	if err == nil {
		t.Error("an update that could not be recorded succeeded")
	}
	if got := string(n.sh(c, limitFile).Stdout); got != "67108864\n500\n" {
		t.Errorf("limits are %q", got)
	}
	if got := n.status(c).Resources.Linux; got.MemoryLimitInBytes != 64<<20 || got.OomScoreAdj != 500 {
		t.Errorf("status has the limits %v", got)
	}
	// The same again, and it survives a restart.
	if _, err := n.UpdateContainerResources(ctx, update); err != nil {
		t.Fatal(err)
	}
	n.restart()
	if got := string(n.sh(c, limitFile).Stdout); got != "100663296\n600\n" {
		t.Errorf("limits are %q", got)
	}
	if got := n.status(c).Resources.Linux; got.MemoryLimitInBytes != 96<<20 || got.OomScoreAdj != 600 {
		t.Errorf("status has the limits %v", got)
	}
}
