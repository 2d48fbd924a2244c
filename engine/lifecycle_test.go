package engine

import (
	"context"
	"os"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestLifecycle(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	pod := n.run(n.pod())
	st, err := n.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	if err != nil || st.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || st.Status.Network.Ip == "" {
		t.Fatalf("status %v, %v", st, err)
	}
	c := n.ready(n.begin(pod, n.script("echo hello; hostname; "+forever)))
	if got := n.status(c); got.State != runtimeapi.ContainerState_CONTAINER_RUNNING || got.StartedAt == 0 {
		t.Errorf("status %v", got)
	}
	out := n.sh(c, "echo out; echo err >&2; exit 3")
	if string(out.Stdout) != "out\n" || string(out.Stderr) != "err\n" || out.ExitCode != 3 {
		t.Errorf("exec: %v", out)
	}
	if _, err := n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c, Timeout: 30}); err != nil {
		t.Fatal(err)
	}
	end := n.exited(c)
	if end.ExitCode != 0 || end.Reason != "Completed" || end.FinishedAt < end.StartedAt {
		t.Errorf("status %v", end)
	}
	log, err := os.ReadFile(end.LogPath)
	if err != nil || !strings.Contains(string(log), " stdout F hello\n") {
		t.Errorf("log %q, %v", log, err)
	}
	for range 2 {
		if _, err := n.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c}); err != nil {
			t.Fatal(err)
		}
		if _, err := n.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(end.LogPath); err != nil {
		t.Errorf("the log went with the container: %v", err)
	}
}
