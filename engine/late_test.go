package engine

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestLateEnds: an end that is heard of after its pod was removed does not bring
// back what was kept of it.
func TestLateEnds(t *testing.T) {
	n := newNode(t)
	pod := n.run(n.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	}))
	n.create(pod, n.script(forever))
	s, c := n.allSandboxes()[0], n.allContainers()[0]
	process := ""
	for process = range s.rec.podProcesses() {
	}
	if process == "" {
		t.Fatal("the pod has no process of its own")
	}
	if _, err := n.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	n.pauseExited(s, process)
	if err := n.changeContainer(c, func(r *containerRecord) { r.Message = "late" }); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{n.sandboxRecords.Path(s.id), n.containerRecords.Path(c.id)} {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is back: %v", dir, err)
		}
	}
}
