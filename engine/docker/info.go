package docker

import (
	"context"
	"encoding/json"
	"maps"
	"slices"

	"github.com/moby/moby/client"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/internal/tree"
)

// criVersion is what the kubelet compares Version's answer with.
const criVersion = "0.1.0"

// Version names the runtime: Docker's, since it is what runs the containers.
func (r *Runtime) Version(ctx context.Context, _ *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	v, err := r.api().ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return nil, failed(err, "version of the Docker Engine")
	}
	return &runtimeapi.VersionResponse{
		Version: criVersion, RuntimeName: "docker", RuntimeVersion: v.Version, RuntimeApiVersion: "v1",
	}, nil
}

// Status tells whether pods can be run. Handlers are Docker's runtimes.
func (r *Runtime) Status(ctx context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	runtime := &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Status: true}
	network := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if reason, message := r.absence(ctx); reason != "" {
		runtime.Status, runtime.Reason, runtime.Message = false, reason, message
		network.Status, network.Reason, network.Message = false, reason, message
	} else if err := r.cfg.connectable(); err != nil {
		network.Status, network.Reason, network.Message = false, "NetworkNotReady", err.Error()
	}
	resp := &runtimeapi.StatusResponse{
		Status:   &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{runtime, network}},
		Features: &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	}
	for _, name := range append([]string{""}, slices.Sorted(maps.Keys(r.info().Runtimes))...) {
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, &runtimeapi.RuntimeHandler{
			Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: tree.HasMountSetattr()},
		})
	}
	if !req.Verbose {
		return resp, nil
	}
	b, err := json.Marshal(map[string]any{
		"endpoint": r.cfg.Endpoint, "apiVersion": r.api().ClientVersion(), "serverVersion": r.info().ServerVersion,
		"storageDriver": r.info().Driver, "cgroupDriver": r.info().CgroupDriver, "rootDir": r.info().DockerRootDir,
		"securityOptions": r.info().SecurityOptions, "stateDir": r.cfg.StateDir, "warnings": r.info().Warnings,
		"network": r.cfg.Connect, "cniPlugins": r.cfg.Network != nil && r.cfg.Network.HasPlugins(), "streamAddress": r.streams.Addr().String(),
	})
	if err != nil {
		return nil, err
	}
	resp.Info = map[string]string{"docker": string(b)}
	return resp, nil
}

// checkHandler refuses handlers that are no runtime of Docker's.
func (r *Runtime) checkHandler(name string) error {
	if _, ok := r.info().Runtimes[name]; name != "" && !ok {
		return invalid("runtime handler %q is not a runtime of the Docker Engine's", name)
	}
	return nil
}

// RuntimeConfig tells who makes cgroups: Docker as it is configured.
func (r *Runtime) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if r.systemdCgroups() {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}
