// Package cri is the seam between a node agent and a container runtime: small
// Go interfaces over the messages of the Kubernetes Container Runtime
// Interface v1 (k8s.io/cri-api), so that the same interface is a function call
// inside one process (engine) or a gRPC call to any runtime (cri/remote), and
// any runtime behind it can be served to any kubelet (cri/server).
//
// Rules that every implementation keeps:
//
//   - An error carries a gRPC code (google.golang.org/grpc/status): NotFound,
//     AlreadyExists, InvalidArgument, FailedPrecondition, DeadlineExceeded,
//     Unimplemented, Unavailable, Unknown. Codes are the error classes of the
//     whole project above the engine; nothing else is matched on.
//   - Every verb is idempotent, and joins the same operation already under way
//     instead of failing or starting it twice. Work goes on after a caller's
//     deadline; the retry gets its result.
//   - Responses belong to the caller; requests are not kept or changed.
//
// The package holds no state and starts nothing.
package cri

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Runtime is all of a container runtime that a node agent needs.
type Runtime interface {
	Info
	Sandboxes
	Containers
	Streams
	Stats
	Metrics
	Events
	Images
}

// Info tells about the runtime itself.
type Info interface {
	Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error)
	Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error)
	RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error)
	UpdateRuntimeConfig(context.Context, *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error)
}

// Sandboxes runs pod sandboxes.
type Sandboxes interface {
	RunPodSandbox(context.Context, *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error)
	StopPodSandbox(context.Context, *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error)
	RemovePodSandbox(context.Context, *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error)
	PodSandboxStatus(context.Context, *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error)
	ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error)
	UpdatePodSandboxResources(context.Context, *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error)
}

// Containers runs the containers of pod sandboxes.
type Containers interface {
	CreateContainer(context.Context, *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error)
	StartContainer(context.Context, *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error)
	StopContainer(context.Context, *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error)
	RemoveContainer(context.Context, *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error)
	ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error)
	ContainerStatus(context.Context, *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error)
	UpdateContainerResources(context.Context, *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error)
	ReopenContainerLog(context.Context, *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error)
}

// Streams runs commands in containers and connects to them. Exec, Attach and
// PortForward return a URL that is valid for one connection and a short time.
type Streams interface {
	ExecSync(context.Context, *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error)
	Exec(context.Context, *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error)
	Attach(context.Context, *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error)
	PortForward(context.Context, *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error)
}

// Stats reports what sandboxes and containers use.
type Stats interface {
	ContainerStats(context.Context, *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error)
	ListContainerStats(context.Context, *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error)
	PodSandboxStats(context.Context, *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error)
	ListPodSandboxStats(context.Context, *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error)
}

// Metrics are figures of sandboxes and containers for a monitoring system.
type Metrics interface {
	// ListMetricDescriptors lists all metrics that there can be. It does not
	// change while the runtime runs.
	ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error)
	// ListPodSandboxMetrics gives their values. Label values are in the order of
	// the descriptor's keys.
	ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error)
}

// Events delivers the life of sandboxes and containers as it happens.
type Events interface {
	// ContainerEvents calls yield for every event after the call began, in
	// order, until ctx ends or yield returns an error, and returns that error.
	// ready, if not nil, is called once when no later event can be missed: who
	// lists after that has a complete picture. A runtime that has no events
	// returns Unimplemented; the agent then polls.
	ContainerEvents(ctx context.Context, ready func(), yield func(*runtimeapi.ContainerEventResponse) error) error
}

// Images is the ImageService.
type Images interface {
	ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error)
	ImageStatus(context.Context, *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error)
	PullImage(context.Context, *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error)
	RemoveImage(context.Context, *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error)
	ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error)
}

// Errorf makes an error of the class code.
func Errorf(code codes.Code, format string, args ...any) error {
	return status.Errorf(code, format, args...)
}

// Code returns the class of an error: OK for nil, Unknown for an error that
// carries none.
func Code(err error) codes.Code { return status.Code(err) }

// IsNotFound tells whether the object of a request does not exist.
func IsNotFound(err error) bool { return Code(err) == codes.NotFound }

// MaxMessageSize is the largest gRPC message, in bytes, that the kubelet's
// client accepts.
const MaxMessageSize = 16 << 20
