package docker

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// StopPodSandbox ends a sandbox's containers, its network and its process. One
// that is not there, or has stopped already, is no error.
func (r *Runtime) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return &runtimeapi.StopPodSandboxResponse{}, r.leave(ctx, "stop", req, r.stopSandbox)
}

// RemovePodSandbox removes a sandbox and its containers, stopping them first.
// One that is not there is no error.
func (r *Runtime) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	return &runtimeapi.RemovePodSandboxResponse{}, r.leave(ctx, "remove", req, r.removeSandbox)
}

// leave does, once for all who ask for it, what ends a sandbox if there is one.
func (r *Runtime) leave(ctx context.Context, verb string, req interface {
	proto.Message
	GetPodSandboxId() string
}, work func(context.Context, *sandbox) error) error {
	if err := cri.Validate(req); err != nil {
		return err
	}
	p, err := r.pod(ctx, req.GetPodSandboxId())
	if err != nil || p == nil {
		return err
	}
	_, err = r.join(ctx, verb+" "+p.id, removeTimeout, func(ctx context.Context) (string, error) {
		return "", work(ctx, p)
	})
	return err
}

func (r *Runtime) stopSandbox(ctx context.Context, p *sandbox) error {
	ctrs, err := r.ctrs(ctx, p.id)
	if err != nil {
		return err
	}
	if err := each(ctrs, func(c *ctr) error { return r.kill(ctx, c.id) }); err != nil {
		return err
	}
	if p.rec.Connected {
		if err := r.cfg.teardown(ctx, r.networkPod(p)); err != nil {
			return err
		}
	}
	return r.kill(ctx, p.id)
}

func (r *Runtime) removeSandbox(ctx context.Context, p *sandbox) error {
	if err := r.stopSandbox(ctx, p); err != nil {
		return err
	}
	ctrs, err := r.ctrs(ctx, p.id)
	if err != nil {
		return err
	}
	if err := each(ctrs, func(c *ctr) error { return r.removeContainer(ctx, c.id) }); err != nil {
		return err
	}
	return r.discardSandbox(ctx, p)
}

// each does f for all at once, and joins the errors.
func each[T any](all []T, f func(T) error) error {
	errs := make(chan error, len(all))
	for _, v := range all {
		go func() { errs <- f(v) }()
	}
	var joined []error
	for range all {
		joined = append(joined, <-errs)
	}
	return errors.Join(joined...)
}

// kill ends a container's processes and waits until Docker knows. One that does
// not run, or is gone, is no error.
func (r *Runtime) kill(ctx context.Context, id string) error {
	r.stops.kill(id)
	_, err := r.api().ContainerKill(ctx, id, client.ContainerKillOptions{Signal: "SIGKILL"})
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case err != nil && !errdefs.IsConflict(err): // a conflict is "not running"
		return failed(err, "kill container %s", id)
	}
	return r.awaitEnd(ctx, id)
}

// awaitEnd waits until a container does not run.
func (r *Runtime) awaitEnd(ctx context.Context, id string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	res := r.api().ContainerWait(ctx, id, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	select {
	case <-res.Result:
		return nil
	case err := <-res.Error:
		if errdefs.IsNotFound(err) {
			return nil
		}
		return failed(err, "wait for the end of container %s", id)
	}
}

// removeDocker removes a container of Docker's, and waits if somebody else is
// about to.
func (r *Runtime) removeDocker(ctx context.Context, id string) error {
	for {
		_, err := r.api().ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		switch {
		case err == nil || errdefs.IsNotFound(err):
			return nil
		case !errdefs.IsConflict(err) || !pause(ctx, 50*time.Millisecond):
			return failed(err, "remove container %s", id)
		}
	}
}
