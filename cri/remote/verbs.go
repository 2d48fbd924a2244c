// The verbs of cri.Runtime that differ in name alone; see remote.go for their
// limits and events.go for the one that streams.

package remote

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Version calls the runtime.
func (r *Runtime) Version(ctx context.Context, req *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return call(ctx, r.limit, r.runtime.Version, req)
}

// Status calls the runtime.
func (r *Runtime) Status(ctx context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return call(ctx, r.limit, r.runtime.Status, req)
}

// RuntimeConfig calls the runtime.
func (r *Runtime) RuntimeConfig(ctx context.Context, req *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return call(ctx, r.limit, r.runtime.RuntimeConfig, req)
}

// UpdateRuntimeConfig calls the runtime.
func (r *Runtime) UpdateRuntimeConfig(ctx context.Context, req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	return call(ctx, r.limit, r.runtime.UpdateRuntimeConfig, req)
}

// RunPodSandbox calls the runtime.
func (r *Runtime) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	return call(ctx, 2*r.limit, r.runtime.RunPodSandbox, req)
}

// StopPodSandbox calls the runtime.
func (r *Runtime) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return call(ctx, 2*r.limit, r.runtime.StopPodSandbox, req)
}

// RemovePodSandbox calls the runtime.
func (r *Runtime) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	return call(ctx, 2*r.limit, r.runtime.RemovePodSandbox, req)
}

// PodSandboxStatus calls the runtime.
func (r *Runtime) PodSandboxStatus(ctx context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	return call(ctx, r.limit, r.runtime.PodSandboxStatus, req)
}

// ListPodSandbox calls the runtime.
func (r *Runtime) ListPodSandbox(ctx context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return call(ctx, r.limit, r.runtime.ListPodSandbox, req)
}

// UpdatePodSandboxResources calls the runtime.
func (r *Runtime) UpdatePodSandboxResources(ctx context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return call(ctx, r.limit, r.runtime.UpdatePodSandboxResources, req)
}

// CreateContainer calls the runtime.
func (r *Runtime) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	return call(ctx, r.limit, r.runtime.CreateContainer, req)
}

// StartContainer calls the runtime.
func (r *Runtime) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	return call(ctx, r.limit, r.runtime.StartContainer, req)
}

// StopContainer calls the runtime.
func (r *Runtime) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	return call(ctx, seconds(req.GetTimeout())+r.limit, r.runtime.StopContainer, req)
}

// RemoveContainer calls the runtime.
func (r *Runtime) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	return call(ctx, r.limit, r.runtime.RemoveContainer, req)
}

// ListContainers calls the runtime.
func (r *Runtime) ListContainers(ctx context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return call(ctx, r.limit, r.runtime.ListContainers, req)
}

// ContainerStatus calls the runtime.
func (r *Runtime) ContainerStatus(ctx context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	return call(ctx, r.limit, r.runtime.ContainerStatus, req)
}

// UpdateContainerResources calls the runtime.
func (r *Runtime) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	return call(ctx, r.limit, r.runtime.UpdateContainerResources, req)
}

// ReopenContainerLog calls the runtime.
func (r *Runtime) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	return call(ctx, r.limit, r.runtime.ReopenContainerLog, req)
}

// ExecSync calls the runtime. A timeout of 0 is the protocol's "forever".
func (r *Runtime) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	limit := seconds(req.GetTimeout())
	if limit > 0 {
		limit += r.limit
	}
	return call(ctx, limit, r.runtime.ExecSync, req)
}

// Exec calls the runtime.
func (r *Runtime) Exec(ctx context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return call(ctx, r.limit, r.runtime.Exec, req)
}

// Attach calls the runtime.
func (r *Runtime) Attach(ctx context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return call(ctx, r.limit, r.runtime.Attach, req)
}

// PortForward calls the runtime.
func (r *Runtime) PortForward(ctx context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return call(ctx, r.limit, r.runtime.PortForward, req)
}

// ContainerStats calls the runtime.
func (r *Runtime) ContainerStats(ctx context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	return call(ctx, r.limit, r.runtime.ContainerStats, req)
}

// ListContainerStats calls the runtime.
func (r *Runtime) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	return call(ctx, r.limit, r.runtime.ListContainerStats, req)
}

// PodSandboxStats calls the runtime.
func (r *Runtime) PodSandboxStats(ctx context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	return call(ctx, r.limit, r.runtime.PodSandboxStats, req)
}

// ListPodSandboxStats calls the runtime.
func (r *Runtime) ListPodSandboxStats(ctx context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return call(ctx, r.limit, r.runtime.ListPodSandboxStats, req)
}

// ListImages calls the runtime.
func (r *Runtime) ListImages(ctx context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return call(ctx, r.limit, r.images.ListImages, req)
}

// ImageStatus calls the runtime.
func (r *Runtime) ImageStatus(ctx context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	return call(ctx, r.limit, r.images.ImageStatus, req)
}

// PullImage calls the runtime.
func (r *Runtime) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	return call(ctx, 0, r.images.PullImage, req)
}

// RemoveImage calls the runtime.
func (r *Runtime) RemoveImage(ctx context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	return call(ctx, r.limit, r.images.RemoveImage, req)
}

// ImageFsInfo calls the runtime.
func (r *Runtime) ImageFsInfo(ctx context.Context, req *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return call(ctx, r.limit, r.images.ImageFsInfo, req)
}
