package agent

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/observe"
	"podstead/cri"
)

// fakeRuntime is a container runtime in memory whose containers live by a
// script and whose calls fail on command. It keeps the rules of cri.Runtime and
// complains about callers that break theirs.
type fakeRuntime struct {
	cri.Runtime // calls that no test expects panic
	t           testing.TB

	mu         sync.Mutex
	sandboxes  map[string]*fakeSandbox
	containers map[string]*fakeContainer
	images     map[string]bool
	watchers   map[chan *runtimeapi.ContainerEventResponse]bool
	seq        int
	calls      []call

	// life says how an instance lives; the zero value runs until it is stopped
	// and obeys at once.
	life func(name string, attempt uint32) life
	// fail, if not nil, may refuse a call.
	fail func(verb, name string) error
	// slow, if not nil, is how long a call takes.
	slow func(verb, name string) time.Duration
	// exec answers ExecSync.
	exec func(name string, cmd []string) (int32, error)
	// stats, if not nil, is what a running container uses; ended is told of its end.
	stats func(*fakeContainer) *runtimeapi.ContainerStats
	ended func(name string)
	// noEvents: like containerd 1.6.
	noEvents bool
}

type life struct {
	runs    time.Duration // 0: until stopped
	exit    int32
	ignores time.Duration // how long it takes to end after TERM
}

type call struct {
	verb, name string
	at         time.Time
	timeout    int64
}

type fakeSandbox struct {
	config  *runtimeapi.PodSandboxConfig
	id      string
	ready   bool
	created time.Time
}

type fakeContainer struct {
	config                     *runtimeapi.ContainerConfig
	id, sandbox                string
	state                      runtimeapi.ContainerState
	created, started, finished time.Time
	exit                       int32
	reason                     string
	life                       life
	ended                      chan struct{}
	logPath                    string
}

func (c *fakeContainer) name() string { return c.config.Metadata.Name }

func newFake(t testing.TB) *fakeRuntime {
	return &fakeRuntime{
		t: t, sandboxes: map[string]*fakeSandbox{}, containers: map[string]*fakeContainer{},
		images:   map[string]bool{"app:1": true, "app:2": true},
		watchers: map[chan *runtimeapi.ContainerEventResponse]bool{},
	}
}

// enter records a call, makes it slow and lets it fail.
func (f *fakeRuntime) enter(ctx context.Context, verb, name string, timeout int64) error {
	f.mu.Lock()
	f.calls = append(f.calls, call{verb, name, time.Now(), timeout})
	took := time.Duration(0)
	if f.slow != nil {
		took = f.slow(verb, name)
	}
	f.mu.Unlock()
	pause(ctx, took)
	if err := ctx.Err(); err != nil {
		return cri.Errorf(codes.Canceled, "%v", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return f.fail(verb, name)
	}
	return nil
}

// script changes how the runtime behaves from now on.
func (f *fakeRuntime) script(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// made returns when a verb was called for a name.
func (f *fakeRuntime) made(verb, name string) (at []time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if c.verb == verb && c.name == name {
			at = append(at, c.at)
		}
	}
	return at
}

func (f *fakeRuntime) timeouts(name string) (out []int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if c.verb == "StopContainer" && c.name == name {
			out = append(out, c.timeout)
		}
	}
	return out
}

// running returns the IDs of a container's running instances.
func (f *fakeRuntime) running(name string) (ids []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, c := range f.containers {
		if c.name() == name && c.state == runtimeapi.ContainerState_CONTAINER_RUNNING {
			ids = append(ids, id)
		}
	}
	return ids
}

func (f *fakeRuntime) empty() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.sandboxes) == 0 && len(f.containers) == 0
}

// kill ends a container from outside.
func (f *fakeRuntime) kill(id string, code int32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.exitLocked(f.containers[id], code)
}

// reboot forgets everything but the images, as a runtime in tmpfs does.
func (f *fakeRuntime) reboot() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.containers {
		f.exitLocked(c, 137)
	}
	clear(f.containers)
	clear(f.sandboxes)
}

func (f *fakeRuntime) exitLocked(c *fakeContainer, code int32) {
	if c == nil || c.state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return
	}
	c.state, c.exit, c.finished = runtimeapi.ContainerState_CONTAINER_EXITED, code, time.Now()
	close(c.ended)
	if f.ended != nil {
		f.ended(c.name())
	}
	f.eventLocked(c, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
}

func (f *fakeRuntime) eventLocked(c *fakeContainer, kind runtimeapi.ContainerEventType) {
	e := &runtimeapi.ContainerEventResponse{ContainerId: c.id, ContainerEventType: kind}
	if s := f.sandboxes[c.sandbox]; s != nil {
		e.PodSandboxStatus = &runtimeapi.PodSandboxStatus{Id: s.id, Metadata: s.config.Metadata}
	}
	for w := range f.watchers {
		select {
		case w <- e:
		default:
			f.t.Error("event lost")
		}
	}
}

func (f *fakeRuntime) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "fake", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
}

func (f *fakeRuntime) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{}, nil
}

func (f *fakeRuntime) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return nil, cri.Errorf(codes.Unimplemented, "no")
}

func (f *fakeRuntime) ContainerEvents(ctx context.Context, ready func(), yield func(*runtimeapi.ContainerEventResponse) error) error {
	if f.noEvents {
		return cri.Errorf(codes.Unimplemented, "no events")
	}
	ch := make(chan *runtimeapi.ContainerEventResponse, 4096)
	f.mu.Lock()
	f.watchers[ch] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.watchers, ch)
		f.mu.Unlock()
	}()
	if ready != nil {
		ready()
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-ch:
			if err := yield(e); err != nil {
				return err
			}
		}
	}
}

func (f *fakeRuntime) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	if err := f.enter(ctx, "RunPodSandbox", r.Config.Metadata.Name, 0); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.sandboxes {
		m := s.config.Metadata
		if m.Uid == r.Config.Metadata.Uid && m.Attempt == r.Config.Metadata.Attempt {
			return nil, cri.Errorf(codes.AlreadyExists, "sandbox %s attempt %d exists", m.Name, m.Attempt)
		}
	}
	f.seq++
	s := &fakeSandbox{config: r.Config, id: fmt.Sprintf("s%d", f.seq), ready: true, created: time.Now()}
	f.sandboxes[s.id] = s
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: s.id}, nil
}

func (f *fakeRuntime) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	if err := f.enter(ctx, "StopPodSandbox", r.PodSandboxId, 0); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.containers {
		if c.sandbox == r.PodSandboxId {
			if c.state == runtimeapi.ContainerState_CONTAINER_RUNNING {
				f.t.Errorf("sandbox stopped while %s runs: that is no graceful end", c.name())
			}
			f.exitLocked(c, 137)
		}
	}
	if s := f.sandboxes[r.PodSandboxId]; s != nil {
		s.ready = false
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (f *fakeRuntime) UpdatePodSandboxResources(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return nil, cri.Errorf(codes.Unimplemented, "as older runtimes")
}

func (f *fakeRuntime) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	f.mu.Lock()
	c := f.containers[r.ContainerId]
	f.mu.Unlock()
	if c == nil {
		return nil, cri.Errorf(codes.NotFound, "no container %s", r.ContainerId)
	}
	if err := f.enter(ctx, "UpdateContainerResources", c.name(), 0); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, cri.Errorf(codes.FailedPrecondition, "it does not run")
	}
	if set := r.Linux.CpusetCpus; set != "" && r.Linux.CpuShares == 0 {
		c.config.Linux.Resources.CpusetCpus = set // and what is 0 stays
		return &runtimeapi.UpdateContainerResourcesResponse{}, nil
	} else if set == "" {
		r.Linux.CpusetCpus = c.config.Linux.Resources.CpusetCpus
	}
	c.config.Linux.Resources = r.Linux
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

func (f *fakeRuntime) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	if err := f.enter(ctx, "RemovePodSandbox", r.PodSandboxId, 0); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.sandboxes, r.PodSandboxId)
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (f *fakeRuntime) PodSandboxStatus(ctx context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.sandboxes[r.PodSandboxId]
	if s == nil {
		return nil, cri.Errorf(codes.NotFound, "no sandbox %s", r.PodSandboxId)
	}
	return &runtimeapi.PodSandboxStatusResponse{Status: &runtimeapi.PodSandboxStatus{
		Id: s.id, Metadata: s.config.Metadata, Network: &runtimeapi.PodSandboxNetworkStatus{Ip: "10.0.0." + s.id[1:]}}}, nil
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

func (f *fakeRuntime) ListPodSandbox(ctx context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		if err := f.fail("ListPodSandbox", ""); err != nil {
			return nil, err
		}
	}
	out := &runtimeapi.ListPodSandboxResponse{}
	for _, s := range f.sandboxes {
		if !selects(r.GetFilter().GetLabelSelector(), s.config.Labels) {
			continue
		}
		state := runtimeapi.PodSandboxState_SANDBOX_NOTREADY
		if s.ready {
			state = runtimeapi.PodSandboxState_SANDBOX_READY
		}
		out.Items = append(out.Items, &runtimeapi.PodSandbox{Id: s.id, Metadata: s.config.Metadata, State: state,
			CreatedAt: s.created.UnixNano(), Labels: s.config.Labels, Annotations: s.config.Annotations})
	}
	return out, nil
}

func (f *fakeRuntime) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	name := r.Config.Metadata.Name
	if err := f.enter(ctx, "CreateContainer", name, 0); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.sandboxes[r.PodSandboxId]
	if s == nil || !s.ready {
		return nil, cri.Errorf(codes.FailedPrecondition, "sandbox %s is not ready", r.PodSandboxId)
	}
	for _, m := range r.Config.Mounts {
		if m.Image != nil {
			continue
		}
		if _, err := os.Stat(m.HostPath); err != nil {
			f.t.Errorf("create %s before its mount %s is there: %v", name, m.ContainerPath, err)
		}
	}
	f.seq++
	c := &fakeContainer{config: r.Config, id: fmt.Sprintf("c%d", f.seq), sandbox: r.PodSandboxId, created: time.Now(),
		ended: make(chan struct{}), logPath: filepath.Join(s.config.LogDirectory, r.Config.LogPath)}
	if f.life != nil {
		c.life = f.life(name, r.Config.Metadata.Attempt)
	}
	f.containers[c.id] = c
	f.eventLocked(c, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	return &runtimeapi.CreateContainerResponse{ContainerId: c.id}, nil
}

func (f *fakeRuntime) StartContainer(ctx context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	f.mu.Lock()
	c := f.containers[r.ContainerId]
	f.mu.Unlock()
	if c == nil {
		return nil, cri.Errorf(codes.NotFound, "no container %s", r.ContainerId)
	}
	if err := f.enter(ctx, "StartContainer", c.name(), 0); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, other := range f.containers {
		if other != c && other.name() == c.name() && other.state == runtimeapi.ContainerState_CONTAINER_RUNNING &&
			other.config.Labels[observe.LabelPodUID] == c.config.Labels[observe.LabelPodUID] {
			f.t.Errorf("second instance of %s started while %s runs", c.name(), other.id)
		}
	}
	c.state, c.started = runtimeapi.ContainerState_CONTAINER_RUNNING, time.Now()
	f.eventLocked(c, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	if c.life.runs > 0 {
		go func() {
			timer := time.NewTimer(c.life.runs)
			defer timer.Stop()
			select {
			case <-c.ended:
			case <-timer.C:
				f.kill(c.id, c.life.exit)
			}
		}()
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

func (f *fakeRuntime) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	f.mu.Lock()
	c := f.containers[r.ContainerId]
	f.mu.Unlock()
	if c == nil {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	if err := f.enter(ctx, "StopContainer", c.name(), r.Timeout); err != nil {
		return nil, err
	}
	grace := min(c.life.ignores, time.Duration(r.Timeout)*time.Second)
	code := int32(143)
	if c.life.ignores > time.Duration(r.Timeout)*time.Second || r.Timeout == 0 {
		code = 137
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-c.ended:
	case <-timer.C:
		f.mu.Lock()
		f.exitLocked(c, code)
		f.mu.Unlock()
	case <-ctx.Done():
		return nil, cri.Errorf(codes.Canceled, "%v", ctx.Err())
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

func (f *fakeRuntime) RemoveContainer(ctx context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	if err := f.enter(ctx, "RemoveContainer", r.ContainerId, 0); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.containers[r.ContainerId]; c != nil && c.state == runtimeapi.ContainerState_CONTAINER_RUNNING {
		f.t.Errorf("%s removed while it runs", c.name())
	}
	delete(f.containers, r.ContainerId)
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (f *fakeRuntime) ListContainers(ctx context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &runtimeapi.ListContainersResponse{}
	for _, id := range slices.Sorted(maps.Keys(f.containers)) {
		c := f.containers[id]
		if selects(r.GetFilter().GetLabelSelector(), c.config.Labels) {
			out.Containers = append(out.Containers, &runtimeapi.Container{Id: c.id, PodSandboxId: c.sandbox, Metadata: c.config.Metadata,
				Image: c.config.Image, State: c.state, CreatedAt: c.created.UnixNano(), Labels: c.config.Labels, Annotations: c.config.Annotations})
		}
	}
	return out, nil
}

func (f *fakeRuntime) ContainerStatus(ctx context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.containers[r.ContainerId]
	if c == nil {
		return nil, cri.Errorf(codes.NotFound, "no container %s", r.ContainerId)
	}
	nano := func(t time.Time) int64 {
		if t.IsZero() {
			return 0
		}
		return t.UnixNano()
	}
	return &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{
		Id: c.id, Metadata: c.config.Metadata, State: c.state, CreatedAt: c.created.UnixNano(), StartedAt: nano(c.started),
		FinishedAt: nano(c.finished), ExitCode: c.exit, Reason: c.reason, Image: c.config.Image, ImageRef: c.config.Image.Image,
		Labels: c.config.Labels, Annotations: c.config.Annotations, LogPath: c.logPath,
	}}, nil
}

func (f *fakeRuntime) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	f.mu.Lock()
	c := f.containers[r.ContainerId]
	dead := c == nil || c.state != runtimeapi.ContainerState_CONTAINER_RUNNING
	f.mu.Unlock()
	if dead {
		return nil, cri.Errorf(codes.NotFound, "container is not running")
	}
	if err := f.enter(ctx, "ExecSync", c.name(), r.Timeout); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	code, err := int32(0), error(nil)
	if f.exec != nil {
		code, err = f.exec(c.name(), r.Cmd)
	}
	return &runtimeapi.ExecSyncResponse{ExitCode: code, Stdout: []byte("out")}, err
}

func (f *fakeRuntime) ImageStatus(ctx context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.images[r.Image.Image] {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	return &runtimeapi.ImageStatusResponse{Image: &runtimeapi.Image{Id: r.Image.Image, Size: 1}}, nil
}

func (f *fakeRuntime) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	if err := f.enter(ctx, "PullImage", r.Image.Image, 0); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.images[r.Image.Image] = true
	return &runtimeapi.PullImageResponse{ImageRef: r.Image.Image}, nil
}

// ListImages lists none: collecting images is imagegc's test.
func (f *fakeRuntime) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{}, nil
}

func (f *fakeRuntime) ListContainerStats(context.Context, *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &runtimeapi.ListContainerStatsResponse{}
	for _, c := range f.containers {
		if f.stats != nil && c.state == runtimeapi.ContainerState_CONTAINER_RUNNING {
			out.Stats = append(out.Stats, f.stats(c))
		}
	}
	return out, nil
}

func (f *fakeRuntime) ListPodSandboxStats(context.Context, *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return &runtimeapi.ListPodSandboxStatsResponse{}, nil
}

func (f *fakeRuntime) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{
		{FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/"}},
	}}, nil
}
