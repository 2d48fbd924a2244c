// Package devicetest is a device plugin for tests.
package devicetest

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	plugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// Plugin offers devices. What it is asked is noted in Calls.
type Plugin struct {
	plugin.UnimplementedDevicePluginServer
	Resource string
	Options  plugin.DevicePluginOptions
	// Answer makes the response to Allocate; nil: an empty one.
	Answer func(ids []string) *plugin.ContainerAllocateResponse
	// Prefer chooses; nil: the last ones.
	Prefer func(free []string, n int) []string
	// Nodes are the NUMA nodes of devices that say it.
	Nodes map[string]int64

	dir     string
	mu      sync.Mutex
	devices []*plugin.Device
	changed chan struct{}
	calls   []string
	server  *grpc.Server
}

// Start serves the plugin in a kubelet's directory, once that is served, and
// registers it.
func (p *Plugin) Start(t testing.TB, dir string, ids ...string) {
	t.Helper()
	await(t, filepath.Join(dir, "kubelet.sock"))
	p.dir, p.changed = dir, make(chan struct{})
	p.Set(ids...)
	l, err := net.Listen("unix", filepath.Join(dir, "test.sock"))
	if err != nil {
		t.Fatal(err)
	}
	p.server = grpc.NewServer()
	plugin.RegisterDevicePluginServer(p.server, p)
	go p.server.Serve(l)
	t.Cleanup(p.Stop)
	if err := p.Register(t.Context(), plugin.Version, "test.sock"); err != nil {
		t.Fatal(err)
	}
}

// await waits until something listens on a socket.
func await(t testing.TB, socket string) {
	t.Helper()
	for deadline := time.After(time.Minute); ; {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-deadline:
			t.Fatal(err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Stop ends the plugin.
func (p *Plugin) Stop() { p.server.Stop() }

// Register calls the kubelet.
func (p *Plugin) Register(ctx context.Context, version, endpoint string) error {
	conn, err := grpc.NewClient("unix://"+filepath.Join(p.dir, "kubelet.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = plugin.NewRegistrationClient(conn).Register(ctx, &plugin.RegisterRequest{
		Version: version, Endpoint: endpoint, ResourceName: p.Resource, Options: &p.Options}, grpc.WaitForReady(true))
	return err
}

// Set says which devices there are; those that begin with "-" are unhealthy.
func (p *Plugin) Set(ids ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.devices = nil
	for _, id := range ids {
		d := &plugin.Device{ID: id, Health: plugin.Healthy}
		if id[0] == '-' {
			d.ID, d.Health = id[1:], plugin.Unhealthy
		}
		if node, ok := p.Nodes[d.ID]; ok {
			d.Topology = &plugin.TopologyInfo{Nodes: []*plugin.NUMANode{{ID: node}}}
		}
		p.devices = append(p.devices, d)
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// Calls are what the plugin was asked: "Allocate [a b]".
func (p *Plugin) Calls() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.calls)
}

func (p *Plugin) note(call string, ids []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := call
	for _, id := range ids {
		text += " " + id
	}
	p.calls = append(p.calls, text)
}

func (p *Plugin) GetDevicePluginOptions(context.Context, *plugin.Empty) (*plugin.DevicePluginOptions, error) {
	return &p.Options, nil
}

func (p *Plugin) ListAndWatch(_ *plugin.Empty, s plugin.DevicePlugin_ListAndWatchServer) error {
	for {
		p.mu.Lock()
		now, changed := p.devices, p.changed
		p.mu.Unlock()
		if err := s.Send(&plugin.ListAndWatchResponse{Devices: now}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-s.Context().Done():
			return nil
		}
	}
}

func (p *Plugin) Allocate(_ context.Context, r *plugin.AllocateRequest) (*plugin.AllocateResponse, error) {
	resp := &plugin.AllocateResponse{}
	for _, c := range r.ContainerRequests {
		p.note("Allocate", c.DevicesIds)
		one := &plugin.ContainerAllocateResponse{}
		if p.Answer != nil {
			one = p.Answer(c.DevicesIds)
		}
		resp.ContainerResponses = append(resp.ContainerResponses, one)
	}
	return resp, nil
}

func (p *Plugin) GetPreferredAllocation(_ context.Context, r *plugin.PreferredAllocationRequest) (*plugin.PreferredAllocationResponse, error) {
	resp := &plugin.PreferredAllocationResponse{}
	for _, c := range r.ContainerRequests {
		ids, n := c.AvailableDeviceIDs, int(c.AllocationSize)
		if p.Prefer != nil {
			ids = p.Prefer(ids, n)
		} else {
			ids = ids[len(ids)-n:]
		}
		resp.ContainerResponses = append(resp.ContainerResponses, &plugin.ContainerPreferredAllocationResponse{DeviceIDs: ids})
	}
	return resp, nil
}

func (p *Plugin) PreStartContainer(_ context.Context, r *plugin.PreStartContainerRequest) (*plugin.PreStartContainerResponse, error) {
	p.note("PreStart", r.DevicesIds)
	return &plugin.PreStartContainerResponse{}, nil
}
