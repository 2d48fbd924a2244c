package engine

import (
	"context"
	"maps"
	"slices"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// criVersion is what the kubelet compares Version's answer with.
const criVersion = "0.1.0"

// Version names the runtime.
func (e *Engine) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version: criVersion, RuntimeName: "podstead", RuntimeVersion: e.version(), RuntimeApiVersion: "v1",
	}, nil
}

// version is never empty, which the kubelet would refuse.
func (e *Engine) version() string {
	if e.cfg.Version == "" {
		return "0.0.0-dev"
	}
	return e.cfg.Version
}

// Status tells whether pods can be run, and what the handlers offer.
func (e *Engine) Status(_ context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	network := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if err := e.cfg.Network.Ready(); err != nil {
		network.Status, network.Reason, network.Message = false, "NetworkPluginNotReady", err.Error()
	}
	runtime := &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Status: true}
	if e.supervisorGone.Load() {
		runtime.Status, runtime.Reason, runtime.Message = false, "SupervisorGone", "the supervisor does not answer; another one is being started"
	}
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{runtime, network}},
		Features: &runtimeapi.RuntimeFeatures{
			SupplementalGroupsPolicy: true, MountOptions: true,
		},
	}
	handlers := e.settings.Load().handlers
	for _, name := range slices.Sorted(maps.Keys(handlers)) {
		f := handlers[name].is.Features()
		// Where there are user namespaces, they go with the host's network.
		resp.Features.UserNamespacesHostNetwork = resp.Features.UserNamespacesHostNetwork || f.UserNamespaces
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, &runtimeapi.RuntimeHandler{
			Name: name,
			Features: &runtimeapi.RuntimeHandlerFeatures{
				RecursiveReadOnlyMounts: f.RecursiveReadOnlyMounts, UserNamespaces: f.UserNamespaces,
			},
		})
	}
	if !req.Verbose {
		return resp, nil
	}
	info, err := e.statusInfo(resp)
	if err != nil {
		return nil, err
	}
	resp.Info = info
	return resp, nil
}

// RuntimeConfig tells the cgroup driver: whether pods have slices of systemd's, or
// groups that are directories.
func (e *Engine) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{
		CgroupDriver: e.cgroupDriver(),
	}}, nil
}

// UpdateRuntimeConfig hands the node's pod CIDRs, separated by commas, to the
// network, which takes them if it is free to.
func (e *Engine) UpdateRuntimeConfig(_ context.Context, req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	if err := e.cfg.Network.SetPodCIDR(req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()); err != nil {
		return nil, cri.Errorf(codes.InvalidArgument, "pod CIDR: %v", err)
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}
