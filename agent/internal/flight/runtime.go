package flight

import (
	"context"
	"strings"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/client"
	"podstead/cri"
	"podstead/cri/tracing"
)

const openFlags = unix.O_NOFOLLOW | unix.O_CLOEXEC

// Runtime records the calls that change something, and makes spans of all that
// are part of a pod's steps, on their way to a runtime.
type Runtime struct{ cri.Runtime }

// record is for calls that change something, what being a word more on one.
func record[Req, Resp any](ctx context.Context, verb, what string, call func(context.Context, Req) (Resp, error), req Req) (Resp, error) {
	end := Watch(ctx, client.FlightCall, strings.TrimSpace(verb+" "+what))
	resp, err := span(ctx, verb, call, req)
	end(err)
	return resp, err
}

func span[Req, Resp any](ctx context.Context, verb string, call func(context.Context, Req) (Resp, error), req Req) (Resp, error) {
	a, _ := ctx.Value(key{}).(aim)
	if a.recorder == nil {
		return call(ctx, req)
	}
	ctx, end := tracing.Call(ctx, a.recorder.tracer, trace.SpanKindClient, verb, req)
	resp, err := call(ctx, req)
	end(resp, a.recorder.hide(err))
	return resp, err
}

func (r Runtime) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	return record(ctx, "RunPodSandbox", "", r.Runtime.RunPodSandbox, req)
}

func (r Runtime) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return record(ctx, "StopPodSandbox", "", r.Runtime.StopPodSandbox, req)
}

func (r Runtime) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	return record(ctx, "RemovePodSandbox", "", r.Runtime.RemovePodSandbox, req)
}

func (r Runtime) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	return record(ctx, "CreateContainer", "", r.Runtime.CreateContainer, req)
}

func (r Runtime) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	return record(ctx, "StartContainer", "", r.Runtime.StartContainer, req)
}

func (r Runtime) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	return record(ctx, "StopContainer", "", r.Runtime.StopContainer, req)
}

func (r Runtime) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	return record(ctx, "RemoveContainer", "", r.Runtime.RemoveContainer, req)
}

func (r Runtime) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	return record(ctx, "PullImage", req.GetImage().GetImage(), r.Runtime.PullImage, req)
}

func (r Runtime) ImageStatus(ctx context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	return span(ctx, "ImageStatus", r.Runtime.ImageStatus, req)
}

func (r Runtime) ContainerStatus(ctx context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	return span(ctx, "ContainerStatus", r.Runtime.ContainerStatus, req)
}

func (r Runtime) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	return span(ctx, "ExecSync", r.Runtime.ExecSync, req)
}

func (r Runtime) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	return span(ctx, "UpdateContainerResources", r.Runtime.UpdateContainerResources, req)
}

func (r Runtime) UpdatePodSandboxResources(ctx context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return span(ctx, "UpdatePodSandboxResources", r.Runtime.UpdatePodSandboxResources, req)
}
