package flight

import (
	"context"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/client"
	"podstead/cri"
)

const openFlags = unix.O_NOFOLLOW | unix.O_CLOEXEC

// Runtime records the calls that change something, on their way to a runtime.
type Runtime struct{ cri.Runtime }

func record[Req, Resp any](ctx context.Context, name string, call func(context.Context, Req) (Resp, error), req Req) (Resp, error) {
	end := Begin(ctx, client.FlightCall, name)
	resp, err := call(ctx, req)
	end(err)
	return resp, err
}

func (r Runtime) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	return record(ctx, "RunPodSandbox", r.Runtime.RunPodSandbox, req)
}

func (r Runtime) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return record(ctx, "StopPodSandbox", r.Runtime.StopPodSandbox, req)
}

func (r Runtime) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	return record(ctx, "RemovePodSandbox", r.Runtime.RemovePodSandbox, req)
}

func (r Runtime) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	return record(ctx, "CreateContainer", r.Runtime.CreateContainer, req)
}

func (r Runtime) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	return record(ctx, "StartContainer", r.Runtime.StartContainer, req)
}

func (r Runtime) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	return record(ctx, "StopContainer", r.Runtime.StopContainer, req)
}

func (r Runtime) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	return record(ctx, "RemoveContainer", r.Runtime.RemoveContainer, req)
}

func (r Runtime) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	return record(ctx, "PullImage "+req.GetImage().GetImage(), r.Runtime.PullImage, req)
}
