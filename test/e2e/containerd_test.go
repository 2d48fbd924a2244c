package e2e

import (
	"errors"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"podstead/test/peer"
)

// TestNodeOnContainerd runs the agent on somebody else's runtime, by its socket.
func TestNodeOnContainerd(t *testing.T) {
	n := newNode(t)
	shell, err := peer.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	c := peer.RunContainerd(t, "", map[string]v1.Image{busybox: shell})
	n.start("--runtime-endpoint", c.Endpoint)
	n.write("pod.yaml", strings.Replace(countPod, "restartPolicy: Never", "restartPolicy: OnFailure", 1))
	n.await("count", "ready", ready)
	if out := n.do("exec", "count", "-c", "counter", "--", "hostname"); out != "count\n" {
		t.Errorf("hostname is %q", out)
	}
	if out := n.do("logs", "count", "-c", "counter", "--tail", "1"); out == "" {
		t.Error("there is no log")
	}
	n.do("exec", "count", "-c", "ends", "--", "touch", "/tmp/go")
	n.eventually("the container that failed is restarted", func() error {
		pod, err := n.pod("count")
		if err != nil {
			return err
		}
		for _, s := range pod.Status.ContainerStatuses {
			if s.Name == "ends" && s.RestartCount == 1 && s.LastTerminationState.Terminated.ExitCode == 42 {
				return nil
			}
		}
		return errors.New("not yet")
	})
	n.takeDown()
}
