package engine

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/internal/pod"
)

// ContainerStatus tells what a container is and how it does.
func (e *Engine) ContainerStatus(_ context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := e.mustContainer(req.ContainerId)
	if err != nil {
		return nil, err
	}
	rec := c.record()
	resp := &runtimeapi.ContainerStatusResponse{Status: containerStatus(&rec)}
	if req.Verbose {
		resp.Info, err = e.containerInfo(c, &rec)
	}
	return resp, err
}

// ListContainers lists containers that pass all filters, newest first.
func (e *Engine) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	f := req.GetFilter()
	resp := &runtimeapi.ListContainersResponse{}
	for _, c := range e.allContainers() {
		rec := c.record()
		state := containerState(&rec)
		labels := rec.config().GetLabels()
		if rec.Phase == containerCreating || !strings.HasPrefix(c.id, f.GetId()) ||
			!strings.HasPrefix(c.sandboxID, f.GetPodSandboxId()) ||
			f.GetState() != nil && f.State.State != state || !pod.Selects(f.GetLabelSelector(), labels) {
			continue
		}
		resp.Containers = append(resp.Containers, &runtimeapi.Container{
			Id: c.id, PodSandboxId: c.sandboxID, Metadata: proto.CloneOf(rec.config().Metadata),
			Image: imageSpec(&rec), ImageRef: rec.ImageID, ImageId: rec.ImageID,
			State: state, CreatedAt: rec.CreatedAt.UnixNano(),
			Labels: maps.Clone(labels), Annotations: maps.Clone(rec.config().GetAnnotations()),
		})
	}
	slices.SortFunc(resp.Containers, func(a, b *runtimeapi.Container) int { return pod.NewestFirst(a.CreatedAt, b.CreatedAt, a.Id, b.Id) })
	return resp, nil
}

// containerStatuses are those of a sandbox's containers.
func (e *Engine) containerStatuses(sandboxID string) []*runtimeapi.ContainerStatus {
	var all []*runtimeapi.ContainerStatus
	for _, c := range e.containersOf(sandboxID) {
		if rec := c.record(); rec.Phase != containerCreating {
			all = append(all, containerStatus(&rec))
		}
	}
	return all
}

func containerState(r *containerRecord) runtimeapi.ContainerState {
	switch r.Phase {
	case containerRunning:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	case containerExited:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	}
	return runtimeapi.ContainerState_CONTAINER_CREATED
}

func containerStatus(r *containerRecord) *runtimeapi.ContainerStatus {
	c := r.config()
	st := &runtimeapi.ContainerStatus{
		Id: r.ID, Metadata: proto.CloneOf(c.Metadata), State: containerState(r),
		CreatedAt: r.CreatedAt.UnixNano(), StartedAt: nanoseconds(r.StartedAt), FinishedAt: nanoseconds(r.FinishedAt),
		ExitCode: r.ExitCode, Reason: r.Reason, Message: r.Message,
		Image: imageSpec(r), ImageRef: r.ImageRef, ImageId: r.ImageID,
		Labels: maps.Clone(c.Labels), Annotations: maps.Clone(c.Annotations),
		LogPath: r.LogPath, StopSignal: r.StopSignalName,
		Resources: &runtimeapi.ContainerResources{Linux: proto.CloneOf(r.Resources.M)},
		User: &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{
			Uid: int64(r.User.UID), Gid: int64(r.User.GID),
		}},
	}
	for _, g := range r.User.Groups {
		st.User.Linux.SupplementalGroups = append(st.User.Linux.SupplementalGroups, int64(g))
	}
	for _, m := range c.Mounts {
		st.Mounts = append(st.Mounts, proto.CloneOf(m))
	}
	return st
}

func imageSpec(r *containerRecord) *runtimeapi.ImageSpec {
	return &runtimeapi.ImageSpec{Image: r.ImageName, UserSpecifiedImage: r.config().GetImage().GetUserSpecifiedImage()}
}

// nanoseconds since 1970, 0 for a time that has not come.
func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// containerInfo is for people: what verbose shows.
func (e *Engine) containerInfo(c *container, r *containerRecord) (map[string]string, error) {
	config, err := protojson.Marshal(r.config())
	if err != nil {
		return nil, err
	}
	info := map[string]any{
		"sandboxID": r.SandboxID, "pid": e.hostPid(r), "cgroup": r.Cgroup, "handler": r.Runtime.Name,
		"phase": r.Phase, "config": json.RawMessage(config),
	}
	if s, err := e.specification(c); err == nil {
		info["runtimeSpec"] = s
	}
	b, err := json.Marshal(info)
	if err != nil {
		return nil, err
	}
	return map[string]string{"info": string(b)}, nil
}
