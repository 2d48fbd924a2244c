// Package csitest is a CSI driver for tests, whose volumes are directories.
package csitest

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"podstead/sys"
)

// Driver serves the node service, and its registration.
type Driver struct {
	spec.UnimplementedNodeServer
	Name   string
	Data   string // directory of the volumes
	Stages bool
	Size   int64 // that it tells of each volume; 0: it tells of none

	mu       sync.Mutex
	calls    []string
	server   *grpc.Server
	Notified chan *registration.RegistrationStatus
}

// Start serves the driver below a kubelet's directory, and puts its registration
// into plugins_registry there.
func (d *Driver) Start(t testing.TB, root string) {
	t.Helper()
	d.Serve(t, root, d)
}

// Serve is Start with a node service of the caller's, which may go on to the
// driver's own.
func (d *Driver) Serve(t testing.TB, root string, node spec.NodeServer) {
	t.Helper()
	d.Notified = make(chan *registration.RegistrationStatus, 10)
	d.server = grpc.NewServer()
	spec.RegisterNodeServer(d.server, node)
	registration.RegisterRegistrationServer(d.server, &registrar{driver: d, endpoint: filepath.Join(root, "csi.sock")})
	registry := filepath.Join(root, "plugins_registry")
	if err := os.MkdirAll(registry, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, socket := range []string{filepath.Join(root, "csi.sock"), filepath.Join(registry, d.Name+"-reg.sock")} {
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		go d.server.Serve(l)
	}
	t.Cleanup(d.Stop)
}

// Stop ends the driver; its sockets go.
func (d *Driver) Stop() { d.server.Stop() }

// Calls are the names of the methods that were called.
func (d *Driver) Calls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.calls)
}

func (d *Driver) note(call string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, call)
}

// registrar is what a node-driver-registrar does beside a driver.
type registrar struct {
	registration.UnimplementedRegistrationServer
	driver   *Driver
	endpoint string
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: r.driver.Name, Endpoint: r.endpoint, SupportedVersions: []string{"1.0.0"}}, nil
}

func (r *registrar) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	r.driver.Notified <- s
	return &registration.RegistrationStatusResponse{}, nil
}

func (d *Driver) NodeGetInfo(context.Context, *spec.NodeGetInfoRequest) (*spec.NodeGetInfoResponse, error) {
	return &spec.NodeGetInfoResponse{NodeId: "n"}, nil
}

func (d *Driver) NodeGetCapabilities(context.Context, *spec.NodeGetCapabilitiesRequest) (*spec.NodeGetCapabilitiesResponse, error) {
	resp := &spec.NodeGetCapabilitiesResponse{}
	for can, has := range map[spec.NodeServiceCapability_RPC_Type]bool{
		spec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME: d.Stages, spec.NodeServiceCapability_RPC_GET_VOLUME_STATS: d.Size > 0} {
		if has {
			resp.Capabilities = append(resp.Capabilities, &spec.NodeServiceCapability{Type: &spec.NodeServiceCapability_Rpc{
				Rpc: &spec.NodeServiceCapability_RPC{Type: can}}})
		}
	}
	return resp, nil
}

// NodeGetVolumeStats tells that a volume is half full.
func (d *Driver) NodeGetVolumeStats(_ context.Context, r *spec.NodeGetVolumeStatsRequest) (*spec.NodeGetVolumeStatsResponse, error) {
	d.note("NodeGetVolumeStats")
	if !sys.IsMount(r.VolumePath) {
		return nil, status.Errorf(codes.NotFound, "volume %s is not at %s", r.VolumeId, r.VolumePath)
	}
	return &spec.NodeGetVolumeStatsResponse{Usage: []*spec.VolumeUsage{
		{Unit: spec.VolumeUsage_BYTES, Total: d.Size, Used: d.Size / 2, Available: d.Size - d.Size/2},
		{Unit: spec.VolumeUsage_INODES, Total: 10, Used: 4, Available: 6}}}, nil
}

func bind(from, to string, readOnly bool) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if !readOnly {
		return nil
	}
	return unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

func unbind(at string) error {
	if err := unix.Unmount(at, 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// NodeStageVolume mounts the volume's directory; one that there is not is an
// error.
func (d *Driver) NodeStageVolume(_ context.Context, r *spec.NodeStageVolumeRequest) (*spec.NodeStageVolumeResponse, error) {
	d.note("NodeStageVolume")
	from := filepath.Join(d.Data, r.VolumeId)
	if _, err := os.Stat(from); err != nil {
		return nil, status.Errorf(codes.NotFound, "volume %s", r.VolumeId)
	}
	if sys.IsMount(r.StagingTargetPath) {
		return &spec.NodeStageVolumeResponse{}, nil // it may be called again
	}
	return &spec.NodeStageVolumeResponse{}, bind(from, r.StagingTargetPath, false)
}

func (d *Driver) NodeUnstageVolume(_ context.Context, r *spec.NodeUnstageVolumeRequest) (*spec.NodeUnstageVolumeResponse, error) {
	d.note("NodeUnstageVolume")
	return &spec.NodeUnstageVolumeResponse{}, unbind(r.StagingTargetPath)
}

// NodePublishVolume mounts what is staged, or, for a pod's own volume, a
// directory in which context.json has what the driver was told.
func (d *Driver) NodePublishVolume(_ context.Context, r *spec.NodePublishVolumeRequest) (*spec.NodePublishVolumeResponse, error) {
	d.note("NodePublishVolume")
	from := r.StagingTargetPath
	if from == "" {
		from = filepath.Join(d.Data, r.VolumeId)
		if err := os.MkdirAll(from, 0o755); err != nil {
			return nil, err
		}
		text, err := json.Marshal(map[string]any{"context": r.VolumeContext, "secrets": r.Secrets})
		if err == nil {
			err = os.WriteFile(filepath.Join(from, "context.json"), text, 0o644)
		}
		if err != nil {
			return nil, err
		}
	}
	return &spec.NodePublishVolumeResponse{}, bind(from, r.TargetPath, r.Readonly)
}

func (d *Driver) NodeUnpublishVolume(_ context.Context, r *spec.NodeUnpublishVolumeRequest) (*spec.NodeUnpublishVolumeResponse, error) {
	d.note("NodeUnpublishVolume")
	if err := unbind(r.TargetPath); err != nil {
		return nil, err
	}
	if err := os.Remove(r.TargetPath); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	return &spec.NodeUnpublishVolumeResponse{}, nil
}
