package cri

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Checkpoints writes the state of running containers to files and brings it
// back. It is apart from Runtime because few runtimes can: who has a Runtime asks
// whether it is one. The files hold memory, with all secrets in it; those that
// are read may be an attacker's.
type Checkpoints interface {
	CheckpointContainer(context.Context, *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error)
	CheckpointPod(context.Context, *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error)
	RestorePod(context.Context, *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error)
}

func (c *check) checkpointPod(r *runtimeapi.CheckpointPodRequest) {
	c.required("pod_sandbox_id", r.GetPodSandboxId())
	c.that(path.IsAbs(r.GetOutputPath()), "output_path", "%q is not absolute", r.GetOutputPath())
	c.that(len(r.GetContainerIds()) > 0, "container_ids", "is empty")
	seen := map[string]bool{}
	for i, id := range r.GetContainerIds() {
		c.that(id != "" && !seen[id], fmt.Sprintf("container_ids[%d]", i), "%q is empty or there twice", id)
		seen[id] = true
	}
	c.noOptions(r.GetOptions())
}

func (c *check) restorePod(r *runtimeapi.RestorePodRequest) {
	c.that(path.IsAbs(r.GetCheckpointPath()), "checkpoint_path", "%q is not absolute", r.GetCheckpointPath())
	c.sandboxConfig("config", r.GetConfig())
	c.that(len(r.GetContainerConfigs()) > 0, "container_configs", "is empty")
	seen := map[string]bool{}
	for i, config := range r.GetContainerConfigs() {
		at := fmt.Sprintf("container_configs[%d]", i)
		c.containerConfig(at, config)
		name := config.GetMetadata().GetName()
		c.that(!seen[name], at+".metadata.name", "%q is there twice", name)
		seen[name] = true
	}
	c.noOptions(r.GetOptions())
}

// noOptions: the API has a runtime refuse those that it does not know, and none
// is known.
func (c *check) noOptions(options map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(options)) {
		c.that(false, fmt.Sprintf("options[%q]", key), "is not known")
	}
}
