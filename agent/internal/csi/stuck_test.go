package csi

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/csi/csitest"
)

// slow does not answer for the volume "stuck" before release is closed, and
// mounts nothing.
type slow struct {
	csitest.Driver
	asked, release chan struct{}
}

func (d *slow) NodeStageVolume(ctx context.Context, r *spec.NodeStageVolumeRequest) (*spec.NodeStageVolumeResponse, error) {
	if r.VolumeId == "stuck" {
		close(d.asked)
		<-d.release
	}
	return &spec.NodeStageVolumeResponse{}, nil
}

func (d *slow) NodePublishVolume(context.Context, *spec.NodePublishVolumeRequest) (*spec.NodePublishVolumeResponse, error) {
	return &spec.NodePublishVolumeResponse{}, nil
}

// TestStuckVolumeHoldsUpNoOther: a driver that does not answer for a volume may
// well for others.
func TestStuckVolumeHoldsUpNoOther(t *testing.T) {
	root := t.TempDir()
	driver := &slow{csitest.Driver{Name: "slow.csi.local", Stages: true}, make(chan struct{}), make(chan struct{})}
	driver.Serve(t, root, driver)
	d := &Drivers{Node: "n", Dir: filepath.Join(root, "staging"), Changed: func() {}, Log: slog.New(slog.DiscardHandler)}
	if err := d.Take(t.Context(), driver.Name, filepath.Join(root, "csi.sock"), []string{"1.0.0"}); err != nil {
		t.Fatal(err)
	}
	publish := func(ctx context.Context, pod, handle string) error {
		_, err := d.Publish(ctx, Volume{Driver: driver.Name, Handle: handle, Dir: filepath.Join(root, pod, handle), Pod: &corev1.Pod{}})
		return err
	}
	stuck := make(chan error, 1)
	go func() { stuck <- publish(t.Context(), "first", "stuck") }()
	<-driver.asked
	if err := publish(t.Context(), "second", "other"); err != nil {
		t.Error(err)
	}
	// Who wants the same volume waits for it, no longer than he likes.
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := publish(gone, "third", "stuck"); err == nil {
		t.Error("published while it is staged for another")
	}
	close(driver.release)
	if err := <-stuck; err != nil {
		t.Error(err)
	}
}
