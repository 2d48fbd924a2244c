package metric

import (
	"context"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// Runtime counts calls on their way to a runtime.
type Runtime struct {
	cri.Runtime
	Metrics *Metrics
}

func count[Req, Resp any](ctx context.Context, m *Metrics, kind string, call func(context.Context, Req) (Resp, error), req Req) (Resp, error) {
	began := time.Now()
	resp, err := call(ctx, req)
	m.Operation(kind, time.Since(began), err)
	return resp, err
}

func (r Runtime) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	began := time.Now()
	resp, err := count(ctx, r.Metrics, "run_podsandbox", r.Runtime.RunPodSandbox, req)
	users := req.GetConfig().GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	r.Metrics.Sandbox(req.GetRuntimeHandler(), users != nil && users.Mode == runtimeapi.NamespaceMode_POD, time.Since(began), err)
	return resp, err
}

func (r Runtime) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return count(ctx, r.Metrics, "stop_podsandbox", r.Runtime.StopPodSandbox, req)
}

func (r Runtime) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	return count(ctx, r.Metrics, "remove_podsandbox", r.Runtime.RemovePodSandbox, req)
}

func (r Runtime) PodSandboxStatus(ctx context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	return count(ctx, r.Metrics, "podsandbox_status", r.Runtime.PodSandboxStatus, req)
}

func (r Runtime) ListPodSandbox(ctx context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return count(ctx, r.Metrics, "list_podsandbox", r.Runtime.ListPodSandbox, req)
}

func (r Runtime) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	return count(ctx, r.Metrics, "create_container", r.Runtime.CreateContainer, req)
}

func (r Runtime) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	return count(ctx, r.Metrics, "start_container", r.Runtime.StartContainer, req)
}

func (r Runtime) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	return count(ctx, r.Metrics, "stop_container", r.Runtime.StopContainer, req)
}

func (r Runtime) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	return count(ctx, r.Metrics, "remove_container", r.Runtime.RemoveContainer, req)
}

func (r Runtime) ListContainers(ctx context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return count(ctx, r.Metrics, "list_containers", r.Runtime.ListContainers, req)
}

func (r Runtime) ContainerStatus(ctx context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	return count(ctx, r.Metrics, "container_status", r.Runtime.ContainerStatus, req)
}

func (r Runtime) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	return count(ctx, r.Metrics, "update_container", r.Runtime.UpdateContainerResources, req)
}

func (r Runtime) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	return count(ctx, r.Metrics, "exec_sync", r.Runtime.ExecSync, req)
}

func (r Runtime) Exec(ctx context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return count(ctx, r.Metrics, "exec", r.Runtime.Exec, req)
}

func (r Runtime) Attach(ctx context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return count(ctx, r.Metrics, "attach", r.Runtime.Attach, req)
}

func (r Runtime) PortForward(ctx context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return count(ctx, r.Metrics, "port_forward", r.Runtime.PortForward, req)
}

func (r Runtime) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	return count(ctx, r.Metrics, "list_container_stats", r.Runtime.ListContainerStats, req)
}

func (r Runtime) ListPodSandboxStats(ctx context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return count(ctx, r.Metrics, "list_podsandbox_stats", r.Runtime.ListPodSandboxStats, req)
}

func (r Runtime) ListPodSandboxMetrics(ctx context.Context, req *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return count(ctx, r.Metrics, "list_podsandbox_metrics", r.Runtime.ListPodSandboxMetrics, req)
}

func (r Runtime) ListImages(ctx context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return count(ctx, r.Metrics, "list_images", r.Runtime.ListImages, req)
}

func (r Runtime) ImageStatus(ctx context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	return count(ctx, r.Metrics, "image_status", r.Runtime.ImageStatus, req)
}

func (r Runtime) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	return count(ctx, r.Metrics, "pull_image", r.Runtime.PullImage, req)
}

func (r Runtime) RemoveImage(ctx context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	return count(ctx, r.Metrics, "remove_image", r.Runtime.RemoveImage, req)
}

func (r Runtime) ImageFsInfo(ctx context.Context, req *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return count(ctx, r.Metrics, "image_fs_info", r.Runtime.ImageFsInfo, req)
}

func (r Runtime) Status(ctx context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return count(ctx, r.Metrics, "status", r.Runtime.Status, req)
}

func (r Runtime) Version(ctx context.Context, req *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return count(ctx, r.Metrics, "version", r.Runtime.Version, req)
}

func (r Runtime) ContainerStats(ctx context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	return count(ctx, r.Metrics, "container_stats", r.Runtime.ContainerStats, req)
}

func (r Runtime) PodSandboxStats(ctx context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	return count(ctx, r.Metrics, "podsandbox_stats", r.Runtime.PodSandboxStats, req)
}

func (r Runtime) RuntimeConfig(ctx context.Context, req *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return count(ctx, r.Metrics, "runtime_config", r.Runtime.RuntimeConfig, req)
}

func (r Runtime) UpdateRuntimeConfig(ctx context.Context, req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	return count(ctx, r.Metrics, "update_runtime_config", r.Runtime.UpdateRuntimeConfig, req)
}

func (r Runtime) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	return count(ctx, r.Metrics, "reopen_container_log", r.Runtime.ReopenContainerLog, req)
}

func (r Runtime) ListMetricDescriptors(ctx context.Context, req *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return count(ctx, r.Metrics, "list_metric_descriptors", r.Runtime.ListMetricDescriptors, req)
}
