package engine

import (
	"context"
	"os"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/config"
)

// runscVariable names gVisor's runtime, which takes minutes to build: see
// "make test-gvisor".
const runscVariable = "PODSTEAD_TEST_RUNSC"

// TestGVisor runs a pod whose containers have gVisor's kernel in place of the
// host's, each one its own, with the pod's network.
func TestGVisor(t *testing.T) {
	path := os.Getenv(runscVariable)
	if path == "" {
		t.Skip(runscVariable + " does not name a runsc")
	}
	n := newNode(t)
	ctx := context.Background()
	err := n.Reload(n.with(config.Handler{
		Name: "gvisor", Path: path, Args: []string{"--platform=systrap", "--network=host"},
	}))
	if err != nil {
		t.Fatal(err)
	}
	pod := n.runOn("gvisor")
	c := n.ready(n.begin(pod, n.script(`mkdir /www; echo hi >/www/index.html; httpd -p 8080 -h /www; `+forever, func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("b")}}
	})))
	if out := n.sh(c, "dmesg"); !strings.Contains(string(out.Stdout), "gVisor") {
		t.Errorf("whose kernel is it? %s%s", out.Stdout, out.Stderr)
	}
	if out := n.sh(c, "echo $A; cat /etc/hostname; exit 3"); out.ExitCode != 3 || !strings.HasPrefix(string(out.Stdout), "b\npod-") {
		t.Errorf("exec: %v", out)
	}
	// Another container of the pod reaches it by the loopback device.
	other := n.begin(pod, n.script(`until wget -q -O - http://127.0.0.1:8080/; do sleep 0.1; done; exit 7`))
	if st := n.exited(other); st.ExitCode != 7 || st.Reason != "Error" {
		t.Errorf("%v", st)
	}
	if log, err := os.ReadFile(n.status(other).LogPath); err != nil || !strings.Contains(string(log), " F hi\n") {
		t.Errorf("log %q, %v", log, err)
	}
	n.restart()
	if out := n.sh(c, "echo after"); string(out.Stdout) != "after\n" {
		t.Errorf("exec after a restart of the engine: %v", out)
	}
	if _, err := n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c, Timeout: 30}); err != nil {
		t.Fatal(err)
	}
	if st := n.status(c); st.ExitCode != 0 {
		t.Errorf("%v", st)
	}
}
