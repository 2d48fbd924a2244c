package critest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/remote"
	"podstead/image/imagetest"
	"podstead/test/peer"
)

// TestContainerd shows which specs the machine rules out, and checks the images
// and the list of what may be skipped.
func TestContainerd(t *testing.T) {
	if !*withPeer {
		t.Skip("containerd is built and run with -peer only")
	}
	require(t)
	removeCgroups(t)
	c := peer.RunContainerd(t, os.Getenv(containerdVariable), nil)
	t.Cleanup(func() { removePods(t, c.Endpoint) })
	t.Logf("containerd %s", c.Version)
	served := images(t, os.Getenv(standinVariable))
	mirror(t, c.CertsDir(), imagetest.Registry(t, served))
	critest := retarget(t, os.Getenv(critestVariable), served["k8s-staging-cri-tools/test-image-digest:latest"].Manifest.Digest())
	judge(t, run(t, critest, c.Endpoint, 1))
}

// removePods removes what specs that failed have left, so that their cgroups go.
func removePods(t *testing.T, endpoint string) {
	r, err := remote.New(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	list, err := r.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Error(err)
	}
	for _, pod := range list.GetItems() {
		_, stopErr := r.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.Id})
		_, err := r.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.Id})
		if err := errors.Join(stopErr, err); err != nil {
			t.Error(err)
		}
	}
}

// removeCgroups removes, after the test, the cgroup that containerd makes for
// pods that name none, unless it was there before.
func removeCgroups(t *testing.T) {
	find := func() []string {
		below, _ := filepath.Glob("/sys/fs/cgroup/*/k8s.io")
		top, _ := filepath.Glob("/sys/fs/cgroup/k8s.io")
		return append(below, top...)
	}
	if len(find()) > 0 {
		return
	}
	t.Cleanup(func() {
		for _, dir := range find() {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		}
	})
}
