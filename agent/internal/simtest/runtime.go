package simtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/observe"
	"podstead/cri"
)

func (s *Session) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "sim", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
}

func (s *Session) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{}, nil
}

func (s *Session) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return nil, cri.Errorf(codes.Unimplemented, "no")
}

func (s *Session) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	w, m, id, began := s.w, r.Config.Metadata, "", time.Now()
	err := s.call(ctx, "RunPodSandbox", m.Name, func(late bool) error {
		for _, old := range w.sandboxes {
			if o := old.config.Metadata; o.Uid == m.Uid && o.Attempt == m.Attempt {
				if w.quirks.joins && old.ready {
					id = old.id
					return nil
				}
				return cri.Errorf(codes.AlreadyExists, "sandbox %s attempt %d exists", m.Name, m.Attempt)
			}
		}
		sb := &sandbox{config: r.Config, id: w.newID(m.Name), ready: true, created: time.Now()}
		if !late {
			w.checkSandbox(sb, began)
		}
		w.sandboxes[sb.id] = sb
		id = sb.id
		return nil
	})
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, err
}

// newID is the same whatever happens to others.
func (w *World) newID(key string) string {
	w.ids[key]++
	return fmt.Sprintf("%s-%d", strings.ReplaceAll(key, "/", "-"), w.ids[key])
}

func (w *World) sandboxName(id string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.sandboxes[id]; s != nil {
		return s.config.Metadata.Name
	}
	return id
}

func (s *Session) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	w, began := s.w, time.Now()
	err := s.call(ctx, "StopPodSandbox", w.sandboxName(r.PodSandboxId), func(late bool) error {
		sb := w.sandboxes[r.PodSandboxId]
		if sb == nil {
			return nil
		}
		sb.ready = false
		for _, c := range w.sorted() {
			if c.sandbox == sb && c.running() {
				w.checkBrutal(c, "its sandbox is stopped", began)
				w.exit(c, 137, "by the end of its sandbox")
			}
		}
		return nil
	})
	return &runtimeapi.StopPodSandboxResponse{}, err
}

func (s *Session) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	w, began := s.w, time.Now()
	err := s.call(ctx, "RemovePodSandbox", w.sandboxName(r.PodSandboxId), func(late bool) error {
		for _, c := range w.sorted() {
			if c.sandbox.id != r.PodSandboxId {
				continue
			}
			if c.running() {
				w.checkBrutal(c, "its sandbox is removed", began)
				w.exit(c, 137, "by the removal of its sandbox")
			}
			delete(w.containers, c.id)
		}
		if sb := w.sandboxes[r.PodSandboxId]; sb != nil {
			delete(w.sandboxes, r.PodSandboxId)
			w.podOf(sb.uid())
		}
		return nil
	})
	return &runtimeapi.RemovePodSandboxResponse{}, err
}

func (s *Session) PodSandboxStatus(ctx context.Context, r *runtimeapi.PodSandboxStatusRequest) (out *runtimeapi.PodSandboxStatusResponse, err error) {
	w := s.w
	err = s.look(ctx, "PodSandboxStatus", w.sandboxName(r.PodSandboxId), func() error {
		sb := w.sandboxes[r.PodSandboxId]
		if sb == nil {
			return cri.Errorf(codes.NotFound, "no sandbox %s", r.PodSandboxId)
		}
		out = &runtimeapi.PodSandboxStatusResponse{Status: &runtimeapi.PodSandboxStatus{Id: sb.id, Metadata: sb.config.Metadata,
			State: sb.state(), CreatedAt: sb.created.UnixNano(), Network: &runtimeapi.PodSandboxNetworkStatus{Ip: "10.0.0.1-" + sb.id}}}
		return nil
	})
	return out, err
}

func (s *sandbox) state() runtimeapi.PodSandboxState {
	if s.ready {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

func (s *Session) ListPodSandbox(ctx context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	out, selector := &runtimeapi.ListPodSandboxResponse{}, r.GetFilter().GetLabelSelector()
	err := s.look(ctx, "ListPodSandbox", selector[observe.LabelPodUID], func() error {
		for _, sb := range s.w.sandboxes {
			if selects(selector, sb.config.Labels) {
				out.Items = append(out.Items, &runtimeapi.PodSandbox{Id: sb.id, Metadata: sb.config.Metadata, State: sb.state(),
					CreatedAt: sb.created.UnixNano(), Labels: sb.config.Labels, Annotations: sb.config.Annotations})
			}
		}
		return nil
	})
	return out, err
}

func (s *Session) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	w, m, id, began := s.w, r.Config.Metadata, "", time.Now()
	key := r.SandboxConfig.Metadata.Name + "/" + m.Name
	err := s.call(ctx, "CreateContainer", key, func(late bool) error {
		sb := w.sandboxes[r.PodSandboxId]
		if sb == nil || !sb.ready {
			return cri.Errorf(codes.FailedPrecondition, "sandbox %s is not ready", r.PodSandboxId)
		}
		for _, old := range w.containers {
			if old.sandbox == sb && old.name() == m.Name && old.config.Metadata.Attempt == m.Attempt {
				if w.quirks.joins && old.state == runtimeapi.ContainerState_CONTAINER_CREATED {
					id = old.id
					return nil
				}
				return cri.Errorf(codes.AlreadyExists, "container %s attempt %d exists", m.Name, m.Attempt)
			}
		}
		for _, mount := range r.Config.Mounts {
			if _, err := os.Stat(mount.HostPath); err != nil && mount.HostPath != "" {
				return cri.Errorf(codes.InvalidArgument, "mount %s: %v", mount.ContainerPath, err)
			}
		}
		w.seq++
		c := &container{config: r.Config, id: w.newID(key), sandbox: sb, created: time.Now(), ended: make(chan struct{}),
			life: w.newLife(sb.config.Metadata.Name, m.Name)}
		c.seq, c.asked = w.seq, began
		w.containers[c.id] = c
		id = c.id
		w.note("%s is %s, %+v", c.id, key, c.life)
		w.event(c, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
		return nil
	})
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, err
}

// find returns a container and under what name its fate is looked up.
func (w *World) find(id string) (*container, string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.containers[id]; c != nil {
		return c, c.key()
	}
	return nil, id
}

func (s *Session) StartContainer(ctx context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	w := s.w
	c, key := w.find(r.ContainerId)
	if c == nil {
		return nil, cri.Errorf(codes.NotFound, "no container %s", r.ContainerId)
	}
	err := s.call(ctx, "StartContainer", key, func(late bool) error {
		switch {
		case w.containers[c.id] == nil:
			return cri.Errorf(codes.NotFound, "no container %s", c.id)
		case c.running() && w.quirks.joins:
			return nil
		case c.state != runtimeapi.ContainerState_CONTAINER_CREATED:
			return cri.Errorf(codes.FailedPrecondition, "container %s is not created but %s", c.id, c.state)
		case !c.sandbox.ready:
			return cri.Errorf(codes.FailedPrecondition, "sandbox %s is not ready", c.sandbox.id)
		}
		if w.faulty && w.chance(6, "exec", key) {
			if w.quirks.failedExits {
				c.started = time.Now()
				c.state, c.exit, c.finished, c.reason = runtimeapi.ContainerState_CONTAINER_EXITED, 128, time.Now(), "StartError"
				close(c.ended)
				w.remember(c)
				w.event(c, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
			}
			return cri.Errorf(codes.Unknown, "exec: no such file or directory")
		}
		c.state, c.started, c.late = runtimeapi.ContainerState_CONTAINER_RUNNING, time.Now(), late
		w.checkStart(c, c.asked)
		w.remember(c)
		w.event(c, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
		if c.life.runs > 0 {
			time.AfterFunc(c.life.runs, func() {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.exit(c, c.life.exit, "by itself")
			})
		}
		return nil
	})
	return &runtimeapi.StartContainerResponse{}, err
}

func (s *Session) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	w := s.w
	c, key := w.find(r.ContainerId)
	if c == nil {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	w.mu.Lock()
	w.toStop(c, false)
	w.mu.Unlock()
	grace := time.Duration(r.Timeout) * time.Second
	err := s.with(ctx, "StopContainer", key, func(late bool) error {
		if !c.running() {
			return nil
		}
		w.checkStop(c, grace)
		if c.termAt.IsZero() && grace > 0 {
			c.termAt = time.Now()
			w.after(c.life.ignores, c, 143, "after TERM")
		}
		if grace == 0 || w.quirks.stopsAlone {
			w.after(grace, c, 137, "by KILL")
		}
		return nil
	}, func() error {
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-c.ended:
			return nil
		case <-t.C:
		case <-ctx.Done():
			return s.left(ctx)
		case <-s.dead:
			return s.left(ctx)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.kill(c, grace)
		return nil
	})
	return &runtimeapi.StopContainerResponse{}, err
}

// after has a container end after d, if it has not by then.
func (w *World) after(d time.Duration, c *container, code int32, by string) {
	end := func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if code == 137 {
			w.kill(c, d)
			return
		}
		w.exit(c, code, by)
	}
	if d == 0 {
		go end() // the lock is held
		return
	}
	time.AfterFunc(d, end)
}

// kill ends a container whose grace is over.
func (w *World) kill(c *container, grace time.Duration) {
	if c.running() {
		w.checkKill(c)
		w.exit(c, 137, fmt.Sprintf("by KILL after %v", grace))
	}
}

func (s *Session) UpdatePodSandboxResources(context.Context, *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return nil, cri.Errorf(codes.Unimplemented, "as older runtimes")
}

func (s *Session) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	c, key := s.w.find(r.ContainerId)
	if c == nil {
		return nil, cri.Errorf(codes.NotFound, "no container %s", r.ContainerId)
	}
	err := s.call(ctx, "UpdateContainerResources", key, func(bool) error {
		if !c.running() {
			return cri.Errorf(codes.FailedPrecondition, "it does not run")
		}
		c.update(r.Linux)
		return nil
	})
	return &runtimeapi.UpdateContainerResourcesResponse{}, err
}

func (s *Session) RemoveContainer(ctx context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	w, began := s.w, time.Now()
	c, key := w.find(r.ContainerId)
	if c == nil {
		return &runtimeapi.RemoveContainerResponse{}, nil
	}
	err := s.call(ctx, "RemoveContainer", key, func(late bool) error {
		if c.running() {
			w.checkBrutal(c, "it is removed", began)
			w.exit(c, 137, "by its removal")
		}
		delete(w.containers, c.id)
		return nil
	})
	return &runtimeapi.RemoveContainerResponse{}, err
}

func (s *Session) ListContainers(ctx context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	out, selector := &runtimeapi.ListContainersResponse{}, r.GetFilter().GetLabelSelector()
	err := s.look(ctx, "ListContainers", selector[observe.LabelPodUID], func() error {
		for _, c := range s.w.sorted() {
			if selects(selector, c.config.Labels) {
				out.Containers = append(out.Containers, &runtimeapi.Container{Id: c.id, PodSandboxId: c.sandbox.id, Metadata: c.config.Metadata,
					Image: c.config.Image, State: c.state, CreatedAt: c.created.UnixNano(), Labels: c.config.Labels, Annotations: c.config.Annotations})
			}
		}
		return nil
	})
	return out, err
}

func (s *Session) ContainerStatus(ctx context.Context, r *runtimeapi.ContainerStatusRequest) (out *runtimeapi.ContainerStatusResponse, err error) {
	c, key := s.w.find(r.ContainerId)
	err = s.look(ctx, "ContainerStatus", key, func() error {
		if c == nil || s.w.containers[c.id] == nil {
			return cri.Errorf(codes.NotFound, "no container %s", r.ContainerId)
		}
		out = &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{
			Id: c.id, Metadata: c.config.Metadata, State: c.state, CreatedAt: nano(c.created), StartedAt: nano(c.started), FinishedAt: nano(c.finished),
			ExitCode: c.exit, Reason: c.reason, Image: c.config.Image, ImageRef: c.config.Image.Image, Labels: c.config.Labels,
			Annotations: c.config.Annotations, LogPath: filepath.Join(c.sandbox.config.LogDirectory, c.config.LogPath),
		}}
		return nil
	})
	return out, err
}

func nano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func (s *Session) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	w := s.w
	c, key := w.find(r.ContainerId)
	if c == nil {
		return nil, cri.Errorf(codes.NotFound, "no container %s", r.ContainerId)
	}
	kind, code := r.Cmd[0], int32(0)
	w.mu.Lock()
	c.tried(kind)
	if kind == "prestop" {
		w.toStop(c, true)
	}
	w.mu.Unlock()
	slow := time.Duration(0)
	err := s.with(ctx, "Exec "+kind, key, func(late bool) error {
		if !c.running() {
			return cri.Errorf(codes.NotFound, "container %s is not running", c.id)
		}
		code, slow = w.answer(c, kind)
		return nil
	}, func() error {
		most := time.Duration(r.Timeout) * time.Second
		if slow > most && most > 0 {
			s.pause(ctx, most)
			return cri.Errorf(codes.DeadlineExceeded, "command timed out")
		}
		if !s.pause(ctx, slow) {
			return s.left(ctx)
		}
		return nil
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	if ctx.Err() == nil {
		c.answered(kind, code, err)
	}
	return &runtimeapi.ExecSyncResponse{ExitCode: code, Stdout: []byte("out")}, err
}

// answer is what a command in a container says, and how long it takes.
func (w *World) answer(c *container, kind string) (code int32, took time.Duration) {
	if !w.faulty {
		return 0, 0
	}
	switch kind {
	case "prestop", "poststart":
		took = w.span(5*time.Second, "hook takes", c.key())
		if w.chance(20, "hook", c.key()) {
			code = 1
		}
		return code, took
	}
	age := time.Since(c.started)
	if age >= c.life.sickAfter && age < c.life.sickAfter+c.life.sickFor || w.chance(5, "blip", c.key()) {
		code = 1
	}
	if w.chance(5, "slow probe", c.key()) {
		took = w.span(3*time.Second, "probe takes", c.key())
	}
	return code, took
}

func (s *Session) ImageStatus(ctx context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	out, name := &runtimeapi.ImageStatusResponse{}, r.Image.Image
	err := s.look(ctx, "ImageStatus", name, func() error {
		if s.w.images[name] {
			out.Image = &runtimeapi.Image{Id: name, Size: 1}
		}
		return nil
	})
	return out, err
}

func (s *Session) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	w, name := s.w, r.Image.Image
	err := s.call(ctx, "PullImage", name, func(late bool) error {
		if w.faulty && w.chance(20, "pull", name) {
			return cri.Errorf(codes.Unknown, "failed to resolve %s: 503", name)
		}
		w.images[name] = true
		return nil
	})
	return &runtimeapi.PullImageResponse{ImageRef: name}, err
}

// ListImages lists none: collecting images is imagegc's test.
func (s *Session) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{}, nil
}

func (s *Session) ListContainerStats(ctx context.Context, _ *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	out := &runtimeapi.ListContainerStatsResponse{}
	err := s.look(ctx, "ListContainerStats", "", func() error {
		for _, c := range s.w.sorted() {
			if c.running() {
				out.Stats = append(out.Stats, &runtimeapi.ContainerStats{
					Attributes: &runtimeapi.ContainerAttributes{Id: c.id, Metadata: c.config.Metadata, Labels: c.config.Labels},
					Memory:     &runtimeapi.MemoryUsage{WorkingSetBytes: &runtimeapi.UInt64Value{Value: s.w.usage(c)}},
				})
			}
		}
		return nil
	})
	return out, err
}

func (s *Session) ListPodSandboxStats(context.Context, *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return &runtimeapi.ListPodSandboxStatsResponse{}, nil
}

func (s *Session) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/"}}}}, nil
}
