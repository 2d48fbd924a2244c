package conformance

import (
	"context"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// recorder is a runtime whose traffic is watched.
type recorder struct {
	to      cri.Runtime
	traffic *traffic
}

var _ cri.Runtime = recorder{}

func pass[Q, A proto.Message](ctx context.Context, t *traffic, verb func(context.Context, Q) (A, error), request Q) (A, error) {
	t.saw(request)
	answer, err := verb(ctx, request)
	if err == nil {
		t.saw(answer)
	}
	return answer, err
}

func (r recorder) ContainerEvents(ctx context.Context, ready func(), yield func(*runtimeapi.ContainerEventResponse) error) error {
	r.traffic.saw(&runtimeapi.GetEventsRequest{})
	return r.to.ContainerEvents(ctx, ready, func(event *runtimeapi.ContainerEventResponse) error {
		r.traffic.saw(event)
		return yield(event)
	})
}

func (r recorder) Version(ctx context.Context, q *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return pass(ctx, r.traffic, r.to.Version, q)
}

func (r recorder) Status(ctx context.Context, q *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return pass(ctx, r.traffic, r.to.Status, q)
}

func (r recorder) RuntimeConfig(ctx context.Context, q *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return pass(ctx, r.traffic, r.to.RuntimeConfig, q)
}

func (r recorder) UpdateRuntimeConfig(ctx context.Context, q *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	return pass(ctx, r.traffic, r.to.UpdateRuntimeConfig, q)
}

func (r recorder) RunPodSandbox(ctx context.Context, q *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	return pass(ctx, r.traffic, r.to.RunPodSandbox, q)
}

func (r recorder) StopPodSandbox(ctx context.Context, q *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return pass(ctx, r.traffic, r.to.StopPodSandbox, q)
}

func (r recorder) RemovePodSandbox(ctx context.Context, q *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	return pass(ctx, r.traffic, r.to.RemovePodSandbox, q)
}

func (r recorder) PodSandboxStatus(ctx context.Context, q *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	return pass(ctx, r.traffic, r.to.PodSandboxStatus, q)
}

func (r recorder) ListPodSandbox(ctx context.Context, q *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return pass(ctx, r.traffic, r.to.ListPodSandbox, q)
}

func (r recorder) UpdatePodSandboxResources(ctx context.Context, q *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return pass(ctx, r.traffic, r.to.UpdatePodSandboxResources, q)
}

func (r recorder) CreateContainer(ctx context.Context, q *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	return pass(ctx, r.traffic, r.to.CreateContainer, q)
}

func (r recorder) StartContainer(ctx context.Context, q *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	return pass(ctx, r.traffic, r.to.StartContainer, q)
}

func (r recorder) StopContainer(ctx context.Context, q *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	return pass(ctx, r.traffic, r.to.StopContainer, q)
}

func (r recorder) RemoveContainer(ctx context.Context, q *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	return pass(ctx, r.traffic, r.to.RemoveContainer, q)
}

func (r recorder) ListContainers(ctx context.Context, q *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return pass(ctx, r.traffic, r.to.ListContainers, q)
}

func (r recorder) ContainerStatus(ctx context.Context, q *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	return pass(ctx, r.traffic, r.to.ContainerStatus, q)
}

func (r recorder) UpdateContainerResources(ctx context.Context, q *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	return pass(ctx, r.traffic, r.to.UpdateContainerResources, q)
}

func (r recorder) ReopenContainerLog(ctx context.Context, q *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	return pass(ctx, r.traffic, r.to.ReopenContainerLog, q)
}

func (r recorder) ExecSync(ctx context.Context, q *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	return pass(ctx, r.traffic, r.to.ExecSync, q)
}

func (r recorder) Exec(ctx context.Context, q *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return pass(ctx, r.traffic, r.to.Exec, q)
}

func (r recorder) Attach(ctx context.Context, q *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return pass(ctx, r.traffic, r.to.Attach, q)
}

func (r recorder) PortForward(ctx context.Context, q *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return pass(ctx, r.traffic, r.to.PortForward, q)
}

func (r recorder) ContainerStats(ctx context.Context, q *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	return pass(ctx, r.traffic, r.to.ContainerStats, q)
}

func (r recorder) ListContainerStats(ctx context.Context, q *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	return pass(ctx, r.traffic, r.to.ListContainerStats, q)
}

func (r recorder) PodSandboxStats(ctx context.Context, q *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	return pass(ctx, r.traffic, r.to.PodSandboxStats, q)
}

func (r recorder) ListPodSandboxStats(ctx context.Context, q *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return pass(ctx, r.traffic, r.to.ListPodSandboxStats, q)
}

func (r recorder) ListImages(ctx context.Context, q *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return pass(ctx, r.traffic, r.to.ListImages, q)
}

func (r recorder) ImageStatus(ctx context.Context, q *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	return pass(ctx, r.traffic, r.to.ImageStatus, q)
}

func (r recorder) PullImage(ctx context.Context, q *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	return pass(ctx, r.traffic, r.to.PullImage, q)
}

func (r recorder) RemoveImage(ctx context.Context, q *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	return pass(ctx, r.traffic, r.to.RemoveImage, q)
}

func (r recorder) ImageFsInfo(ctx context.Context, q *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return pass(ctx, r.traffic, r.to.ImageFsInfo, q)
}

func (r recorder) ListMetricDescriptors(ctx context.Context, q *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return pass(ctx, r.traffic, r.to.ListMetricDescriptors, q)
}

func (r recorder) ListPodSandboxMetrics(ctx context.Context, q *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return pass(ctx, r.traffic, r.to.ListPodSandboxMetrics, q)
}
