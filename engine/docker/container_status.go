package docker

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/internal/pod"
)

// Reasons of an exit, in the words that kubelets and people know.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOMKilled  = "OOMKilled"
	reasonStartError = "StartError"
)

// exitStartError is the code of a container whose program never ran, if Docker
// has none.
const exitStartError = 128

// ContainerStatus tells what a container is and how it does. An exit is told
// when the log is complete.
func (r *Runtime) ContainerStatus(ctx context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := r.mustCtr(ctx, req.ContainerId)
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: r.ctrStatus(ctx, c)}
	if req.Verbose {
		resp.Info, err = verboseInfo(c.rec.config(), map[string]any{
			"sandboxID": c.rec.SandboxID, "pid": c.state.Pid, "name": strings.TrimPrefix(c.seen.Name, "/"),
			"dockerLog": c.seen.LogPath, "hostConfig": c.seen.HostConfig,
		})
	}
	return resp, err
}

// ctrStatus makes the status of a container that was inspected.
func (r *Runtime) ctrStatus(ctx context.Context, c *ctr) *runtimeapi.ContainerStatus {
	cfg := c.rec.config()
	st := &runtimeapi.ContainerStatus{
		Id: c.id, Metadata: proto.CloneOf(cfg.Metadata), State: ctrState(&c.state),
		CreatedAt: c.rec.CreatedAt, StartedAt: nanoseconds(c.state.StartedAt),
		Image: imageSpec(&c.rec), ImageRef: c.rec.ImageRef, ImageId: c.rec.ImageID,
		Labels: maps.Clone(cfg.Labels), Annotations: maps.Clone(cfg.Annotations),
		LogPath: c.rec.LogPath, StopSignal: c.rec.StopSignal,
		Resources: &runtimeapi.ContainerResources{Linux: r.resources(c)},
		User:      &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{Uid: int64(c.rec.UID), Gid: int64(c.rec.GID)}},
	}
	for _, g := range c.rec.Groups {
		st.User.Linux.SupplementalGroups = append(st.User.Linux.SupplementalGroups, int64(g))
	}
	for _, m := range cfg.Mounts {
		st.Mounts = append(st.Mounts, proto.CloneOf(m))
	}
	if st.State == runtimeapi.ContainerState_CONTAINER_EXITED {
		r.logs.ended(ctx, c)
		c = r.awaitOOM(ctx, c)
		exitOf(&c.state, st)
	}
	return st
}

// oomDelay is by how much Docker may hear of the exit before it hears that it
// was for want of memory: they are two messages.
const oomDelay = 2 * time.Second

// awaitOOM looks again at a container that may have been killed for memory a
// moment ago, since it was not by us.
func (r *Runtime) awaitOOM(ctx context.Context, c *ctr) *ctr {
	limited := c.seen.HostConfig.Memory > 0 && !r.stops.killed(c.id) && c.state.ExitCode == 128+int(unix.SIGKILL)
	for limited && !c.state.OOMKilled && time.Since(time.Unix(0, nanoseconds(c.state.FinishedAt))) < oomDelay {
		seen, err := r.ctr(ctx, c.id)
		if err != nil || seen == nil || !pause(ctx, 20*time.Millisecond) {
			return c
		}
		c = seen
	}
	return c
}

// ctrStatuses are those of a sandbox's containers.
func (r *Runtime) ctrStatuses(ctx context.Context, sandboxID string) ([]*runtimeapi.ContainerStatus, error) {
	all, err := r.ctrs(ctx, sandboxID)
	if err != nil {
		return nil, err
	}
	var out []*runtimeapi.ContainerStatus
	for _, c := range all {
		seen, err := r.ctr(ctx, c.id)
		if err != nil {
			return nil, err
		}
		if seen != nil {
			out = append(out, r.ctrStatus(ctx, seen))
		}
	}
	return out, nil
}

// exitOf fills in how a container ended.
func exitOf(s *container.State, st *runtimeapi.ContainerStatus) {
	st.ExitCode, st.Message = int32(s.ExitCode), s.Error
	st.FinishedAt = max(nanoseconds(s.FinishedAt), st.StartedAt)
	switch {
	case s.Status == container.StateCreated:
		st.Reason, st.FinishedAt = reasonStartError, max(st.FinishedAt, st.CreatedAt)
		if st.ExitCode == 0 {
			st.ExitCode = exitStartError
		}
	case s.OOMKilled:
		st.Reason = reasonOOMKilled
	case s.ExitCode == 0:
		st.Reason = reasonCompleted
	default:
		st.Reason = reasonError
	}
}

func imageSpec(r *containerRecord) *runtimeapi.ImageSpec {
	return &runtimeapi.ImageSpec{Image: r.ImageName, UserSpecifiedImage: r.config().GetImage().GetUserSpecifiedImage()}
}

// ListContainers lists containers that pass all filters, newest first.
func (r *Runtime) ListContainers(ctx context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	f := req.GetFilter()
	all, err := r.ctrs(ctx, "")
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ListContainersResponse{}
	for _, c := range all {
		cfg := c.rec.config()
		if !strings.HasPrefix(c.id, f.GetId()) || !strings.HasPrefix(c.rec.SandboxID, f.GetPodSandboxId()) ||
			!pod.Selects(f.GetLabelSelector(), cfg.Labels) {
			continue
		}
		if c.state.Status == container.StateCreated {
			// Only an inspection tells whether its start has failed.
			seen, err := r.ctr(ctx, c.id)
			if err != nil {
				return nil, err
			}
			if seen == nil {
				continue
			}
			c = seen
		}
		state := ctrState(&c.state)
		if f.GetState() != nil && f.State.State != state {
			continue
		}
		resp.Containers = append(resp.Containers, &runtimeapi.Container{
			Id: c.id, PodSandboxId: c.rec.SandboxID, Metadata: cfg.Metadata, Image: imageSpec(&c.rec),
			ImageRef: c.rec.ImageID, ImageId: c.rec.ImageID, State: state, CreatedAt: c.rec.CreatedAt,
			Labels: cfg.Labels, Annotations: cfg.Annotations,
		})
	}
	slices.SortFunc(resp.Containers, func(a, b *runtimeapi.Container) int { return pod.NewestFirst(a.CreatedAt, b.CreatedAt, a.Id, b.Id) })
	return resp, nil
}
