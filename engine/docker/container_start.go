package docker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// startTimeout bounds a start, which ends with the execve.
const startTimeout = 2 * time.Minute

// starts remembers whether the caller of a start heard of its success. The
// zero value is ready.
type starts struct {
	mu   sync.Mutex
	told map[string]bool // by ID of containers that were started here
}

func (s *starts) set(id string, told bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.told == nil {
		s.told = map[string]bool{}
	}
	s.told[id] = s.told[id] || told
}

func (s *starts) get(id string) (told, here bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	told, here = s.told[id]
	return told, here
}

func (s *starts) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.told, id)
}

// StartContainer lets a created container run. If its program cannot be
// executed, the container has exited, with reason StartError.
func (r *Runtime) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	c, err := r.mustCtr(ctx, req.ContainerId)
	if err != nil {
		return nil, err
	}
	_, err = r.join(ctx, "start "+c.id, startTimeout, func(ctx context.Context) (string, error) {
		return "", r.startContainer(ctx, c.id)
	})
	if err != nil {
		return nil, err
	}
	if cri.Heard(ctx) {
		r.starts.set(c.id, true)
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

func (r *Runtime) startContainer(ctx context.Context, id string) error {
	c, err := r.mustCtr(ctx, id)
	if err != nil {
		return err
	}
	told, here := r.starts.get(id)
	if here && !told || !here && c.state.Running {
		return nil // a retry: it was started, and whoever asked had left
	}
	if state := ctrState(&c.state); state != runtimeapi.ContainerState_CONTAINER_CREATED {
		return cri.Errorf(codes.FailedPrecondition, "start container %s: it is %s, not created", id, c.state.Status)
	}
	p, err := r.mustPod(ctx, c.rec.SandboxID)
	if err != nil {
		return err
	}
	if !r.ready(p) {
		return cri.Errorf(codes.FailedPrecondition, "start container %s: pod sandbox %s is not ready", id, p.id)
	}
	if _, err := r.api().ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		return failed(err, "start container %s", id)
	}
	if c, err = r.mustCtr(ctx, id); err != nil {
		return err
	}
	r.starts.set(id, false)
	if err := r.unmount(c.rec.Mounts); err != nil {
		r.log.Warn("mounts for a container stay until it is removed", "container", id, "error", err)
	}
	if f := r.logs.follow(c); f != nil {
		<-f.opened // who is told of the start may look at the log
	}
	if err := r.setExtraLimits(c); err != nil {
		return errors.Join(fmt.Errorf("start container %s: %w", id, err), r.kill(ctx, id))
	}
	r.log.Info("container runs", "container", id, "pid", c.state.Pid)
	return nil
}

// setExtraLimits sets those limits of a running container that Docker does not
// know, in its cgroup. They hold from a few milliseconds after the start.
func (r *Runtime) setExtraLimits(c *ctr) error {
	res := r.resources(c)
	limits := &specs.LinuxResources{Unified: res.GetUnified()}
	for _, h := range res.GetHugepageLimits() {
		limits.HugepageLimits = append(limits.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.PageSize, Limit: h.Limit})
	}
	if score := int(res.GetOomScoreAdj()); score != c.seen.HostConfig.OomScoreAdj { // it was updated
		file := filepath.Join("/proc", strconv.Itoa(c.state.Pid), "oom_score_adj")
		err := os.WriteFile(file, strconv.AppendInt(nil, int64(score), 10), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("linux.oom_score_adj: %w", err)
		}
	}
	if len(limits.Unified) == 0 && len(limits.HugepageLimits) == 0 {
		return nil
	}
	g, err := r.groupOf(c.state.Pid)
	if err != nil || g == nil {
		return err // nil: it has ended already
	}
	if err := g.Set(limits); err != nil && g.Exists() {
		return fmt.Errorf("linux.resources: %w", err)
	}
	return nil
}

// ctrState translates Docker's state. A container that could not be started
// stays "created" there.
func ctrState(s *container.State) runtimeapi.ContainerState {
	switch s.Status {
	case container.StateRunning, container.StatePaused, container.StateRestarting:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	case container.StateCreated:
		if s.Error == "" && s.ExitCode == 0 {
			return runtimeapi.ContainerState_CONTAINER_CREATED
		}
	}
	return runtimeapi.ContainerState_CONTAINER_EXITED
}
