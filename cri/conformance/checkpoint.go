package conformance

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

var checkpointTests = []test{
	{"unknown container", "CheckpointContainer CheckpointContainerRequest.container_id", func(t *testing.T, s *suite) {
		_, err := s.checkpoints(t).CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{
			ContainerId: "none", Location: filepath.Join(t.TempDir(), "a.tar"),
		})
		skipWithoutCheckpoints(t, err)
		if !cri.IsNotFound(err) {
			t.Errorf("error is %v, want NotFound", err)
		}
	}},
	{"container that does not run", "CheckpointContainer CheckpointContainerRequest.{container_id,location}", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "true")
		c.exited(t)
		dir := t.TempDir()
		_, err := s.checkpoints(t).CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: c.id, Location: dir + "/a.tar"})
		skipWithoutCheckpoints(t, err)
		if err == nil {
			t.Error("a container that has ended was checkpointed")
		}
		isEmpty(t, dir)
	}},
	{"container goes on", "CheckpointContainer CheckpointContainerRequest.*", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, counter)
		dir := t.TempDir()
		_, err := s.checkpoints(t).CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{
			ContainerId: c.id, Location: dir + "/a.tar", Timeout: 60,
		})
		c.countsOn(t) // whatever came of it
		needsCRIU(t, err)
		if info, err := os.Stat(dir + "/a.tar"); err != nil || info.Size() == 0 || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("archive: %v, %v", info, err)
		}
	}},
	{"pod", "CheckpointPod RestorePod CheckpointPodRequest.{pod_sandbox_id,output_path,container_ids} " +
		"RestorePodRequest.{checkpoint_path,config,container_configs} RestorePodResponse.* RestoredContainer.*", func(t *testing.T, s *suite) {
		k, p, dir := s.checkpoints(t), s.pod(t), t.TempDir()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		config := p.script("counter", counter)
		c := p.start(t, config)
		_, err := k.CheckpointPod(ctx, &runtimeapi.CheckpointPodRequest{PodSandboxId: p.id, OutputPath: dir, ContainerIds: []string{c.id}})
		c.countsOn(t)
		if err != nil {
			isEmpty(t, dir)
		}
		needsCRIU(t, err)
		again := s.podConfig(t)
		r, err := k.RestorePod(ctx, &runtimeapi.RestorePodRequest{CheckpointPath: dir, Config: again, ContainerConfigs: []*runtimeapi.ContainerConfig{config}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.removePod(t, r.GetPodSandboxId()) })
		if l := r.GetRestoredContainers(); len(l) != 1 || l[0].GetName() != "counter" {
			t.Fatalf("restored %v", l)
		}
		restored := &container{pod: &pod{suite: s, id: r.GetPodSandboxId(), config: again}, id: r.GetRestoredContainers()[0].GetContainerId()}
		if got := restored.status(t).GetState(); got != runtimeapi.ContainerState_CONTAINER_CREATED {
			t.Errorf("state is %v before the start", got)
		}
		restored.start(t)
		restored.countsOn(t)
	}},
}

// counter is a process that counts, in its memory and in a file.
const counter = `i=0; while :; do i=$((i+1)); echo $i > /new; mv /new /count; sleep 0.05; done`

// countsOn waits until the counter has gone on.
func (c *container) countsOn(t *testing.T) {
	t.Helper()
	var first string
	eventually(t, "the process to go on", func() bool {
		now := c.exec(t, "sh", "-c", "cat /count 2>/dev/null || true")
		if first == "" {
			first = now
		}
		return now != first
	})
}

// checkpoints is the target's side of checkpoints; without one the test is
// skipped.
func (s *suite) checkpoints(t *testing.T) cri.Checkpoints {
	t.Helper()
	if s.canCheckpoint == nil {
		t.Skip("the runtime has no checkpoints")
	}
	return s.canCheckpoint
}

func skipWithoutCheckpoints(t *testing.T, err error) {
	t.Helper()
	if cri.Code(err) == codes.Unimplemented {
		t.Skip("the runtime has no checkpoints: ", err)
	}
}

// needsCRIU skips where there is none that works, which the runtime must say.
func needsCRIU(t *testing.T, err error) {
	t.Helper()
	skipWithoutCheckpoints(t, err)
	if cri.Code(err) == codes.FailedPrecondition {
		t.Skip("needs a CRIU that works on this kernel: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// isEmpty checks that a failed checkpoint has left nothing.
func isEmpty(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// checkpointRecorder notes what goes to and comes from a target's checkpoints.
type checkpointRecorder struct {
	to      cri.Checkpoints
	traffic *traffic
}

func (r checkpointRecorder) CheckpointContainer(ctx context.Context, q *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	return pass(ctx, r.traffic, r.to.CheckpointContainer, q)
}

func (r checkpointRecorder) CheckpointPod(ctx context.Context, q *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	return pass(ctx, r.traffic, r.to.CheckpointPod, q)
}

func (r checkpointRecorder) RestorePod(ctx context.Context, q *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return pass(ctx, r.traffic, r.to.RestorePod, q)
}
