package docker

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// killTimeout is how long a container that was sent SIGKILL may take to end
// before that is reported.
const killTimeout = 30 * time.Second

// stops remembers which containers were asked to end, so that it is done once,
// however many stop them. The zero value is ready.
type stops struct {
	mu    sync.Mutex
	asked map[string]bool
	byUs  map[string]bool // killed
}

// first tells whether nobody has asked the container yet.
func (s *stops) first(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked[id] {
		return false
	}
	if s.asked == nil {
		s.asked = map[string]bool{}
	}
	s.asked[id] = true
	return true
}

func (s *stops) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.asked, id)
}

// kill notes that a container is about to be killed by us.
func (s *stops) kill(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byUs == nil {
		s.byUs = map[string]bool{}
	}
	s.byUs[id] = true
}

func (s *stops) killed(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byUs[id]
}

// gone forgets a container that was removed.
func (s *stops) gone(id string) {
	s.forget(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byUs, id)
}

// StopContainer asks a container to end and kills it if it has not ended after
// the timeout. One that has ended or does not exist is no error. The stopping
// goes on when the caller leaves.
func (r *Runtime) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	c, err := r.ctr(ctx, req.ContainerId)
	if err != nil {
		return nil, err
	}
	if c == nil || !c.state.Running {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	stopped := make(chan error, 1)
	r.worker.Go(func() { stopped <- r.stopContainer(c, time.Duration(req.Timeout)*time.Second) })
	select {
	case err = <-stopped:
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	if err != nil {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

func (r *Runtime) stopContainer(c *ctr, timeout time.Duration) error {
	if timeout > 0 {
		if r.stops.first(c.id) {
			_, err := r.api().ContainerKill(r.life, c.id, client.ContainerKillOptions{Signal: strconv.Itoa(c.rec.StopNumber)})
			if err != nil && !errdefs.IsConflict(err) && !errdefs.IsNotFound(err) {
				r.stops.forget(c.id)
				return failed(err, "stop container %s", c.id)
			}
		}
		ctx, cancel := context.WithTimeout(r.life, timeout)
		defer cancel()
		err := r.awaitEnd(ctx, c.id)
		if err == nil || r.life.Err() != nil || ctx.Err() == nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(r.life, killTimeout)
	defer cancel()
	return r.kill(ctx, c.id)
}

// RemoveContainer removes a container, killing it first; its log stays. One
// that is not there is no error.
func (r *Runtime) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	c, err := r.ctr(ctx, req.ContainerId)
	if err != nil {
		return nil, err
	}
	if c != nil {
		err = r.removeContainer(ctx, c.id)
	}
	return &runtimeapi.RemoveContainerResponse{}, err
}

func (r *Runtime) removeContainer(ctx context.Context, id string) error {
	_, err := r.join(ctx, "remove "+id, removeTimeout, func(ctx context.Context) (string, error) {
		if err := r.kill(ctx, id); err != nil {
			return "", err
		}
		// With the container goes Docker's log, which should be copied by then.
		c, err := r.ctr(ctx, id)
		if err != nil {
			return "", err
		}
		if c != nil {
			r.logs.ended(ctx, c)
		}
		if err := r.removeDocker(ctx, id); err != nil {
			return "", err
		}
		if c != nil {
			if err := r.discardMounts(ctx, c.rec.Mounts); err != nil {
				return "", err
			}
		}
		r.logs.forget(id)
		r.stops.gone(id)
		r.starts.forget(id)
		r.gauges.forget(id)
		return "", r.containerState.delete(id)
	})
	return err
}
