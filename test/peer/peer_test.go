package peer_test

import (
	"errors"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/remote"
	"podstead/test/host"
	"podstead/test/peer"
)

func TestMain(m *testing.M) { host.Main(m) }

func TestContainerdRunsAPause(t *testing.T) {
	host.Require(t)
	const pauseRef = "test.local/pause:1"
	dir := t.TempDir()
	c, err := peer.StartContainerd(t.Context(), filepath.Join(dir, "containerd"), pauseRef)
	if errors.Is(err, peer.ErrNotInstalled) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	}()
	pause, err := peer.Pause()
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "pause.tar")
	if err := peer.Archive(archive, map[string]v1.Image{pauseRef: pause}); err != nil {
		t.Fatal(err)
	}
	if err := c.Import(t.Context(), archive); err != nil {
		t.Fatal(err)
	}
	r, err := remote.New(c.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	run, err := r.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "a", Namespace: "b", Uid: "c"},
		Linux:    &runtimeapi.LinuxPodSandboxConfig{CgroupParent: host.Cgroup() + "/a"},
	}})
	if err != nil {
		t.Fatalf("%v\n%s", err, c.LogTail())
	}
	if n := len(c.Shims()); n != 1 {
		t.Errorf("%d shims for one pod", n)
	}
	_, err = r.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: run.GetPodSandboxId()})
	if err != nil {
		t.Error(err)
	}
}
