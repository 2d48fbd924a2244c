package e2e

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"podstead/test/peer"
)

// TestNodeOnContainerd runs the agent on somebody else's runtime, by its socket.
func TestNodeOnContainerd(t *testing.T) {
	n := newNode(t)
	const pauseRef = "test.local/pause:1"
	c, err := peer.StartContainerd(t.Context(), filepath.Join(t.TempDir(), "c"), pauseRef)
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
	shell, err := peer.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "images.tar")
	if err := peer.Archive(archive, map[string]v1.Image{pauseRef: pause, busybox: shell}); err != nil {
		t.Fatal(err)
	}
	if err := c.Import(t.Context(), archive); err != nil {
		t.Fatal(err)
	}

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
