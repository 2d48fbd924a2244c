package device

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	plugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// callTimeout bounds a plugin's answers, except to PreStartContainer.
const (
	callTimeout     = 30 * time.Second
	preStartTimeout = plugin.KubeletPreStartContainerRPCTimeoutInSecs * time.Second
)

// endpoint is one registered plugin.
type endpoint struct {
	resource string
	options  *plugin.DevicePluginOptions
	conn     *grpc.ClientConn
	client   plugin.DevicePluginClient
	cancel   context.CancelFunc

	devices map[string]*plugin.Device // the manager's lock is for these
}

// Run serves the registration of plugins on kubelet.sock in a directory until ctx
// ends. It fails if a kubelet is there already.
func (m *Manager) Run(ctx context.Context, dir string) error {
	l, err := listen(filepath.Join(dir, filepath.Base(plugin.KubeletSocket)))
	if err != nil {
		return fmt.Errorf("registration of device plugins: %w", err)
	}
	srv := grpc.NewServer()
	plugin.RegisterRegistrationServer(srv, registration{manager: m, ctx: ctx, dir: dir})
	stop := context.AfterFunc(ctx, srv.Stop)
	defer stop()
	err = srv.Serve(l)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// listen makes a kubelet's socket anew, and removes those of plugins: each makes
// its own again when it sees that, and registers.
func listen(socket string) (net.Listener, error) {
	dir := filepath.Dir(socket)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	if c, err := net.Dial("unix", socket); err == nil {
		c.Close()
		return nil, fmt.Errorf("%s: a kubelet, or another agent, listens on it", socket)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Type() == os.ModeSocket {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, err
			}
		}
	}
	return net.Listen("unix", socket)
}

// registration is the service that plugins call.
type registration struct {
	plugin.UnimplementedRegistrationServer
	manager *Manager
	ctx     context.Context
	dir     string
}

func (r registration) Register(_ context.Context, req *plugin.RegisterRequest) (*plugin.Empty, error) {
	if err := r.check(req); err != nil {
		r.manager.log.Error("a device plugin is not registered", "resource", req.ResourceName, "error", err)
		return nil, err
	}
	return &plugin.Empty{}, r.manager.use(r.ctx, req.ResourceName, filepath.Join(r.dir, req.Endpoint), req.Options)
}

// use begins to follow a plugin.
func (m *Manager) use(ctx context.Context, resource, socket string, options *plugin.DevicePluginOptions) error {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &endpoint{resource: resource, options: options, conn: conn, client: plugin.NewDevicePluginClient(conn),
		cancel: cancel, devices: map[string]*plugin.Device{}}
	m.add(p)
	go m.watch(ctx, p)
	return nil
}

// Registered takes device plugins that plugins_registry names (registry.Taker).
type Registered struct {
	Manager *Manager
	Context context.Context // of the agent
}

// Take begins to use a plugin of a resource.
func (r Registered) Take(_ context.Context, name, endpoint string, versions []string) error {
	if !slices.Contains(versions, plugin.Version) {
		return fmt.Errorf("versions: %v, want %s", versions, plugin.Version)
	}
	if err := checkName(name); err != nil {
		return err
	}
	return r.Manager.use(r.Context, name, endpoint, nil)
}

// Lose does nothing: the connection tells.
func (r Registered) Lose(string, string) {}

func checkName(resource string) error {
	if !IsExtended(corev1.ResourceName(resource)) {
		return fmt.Errorf("resource_name: %q is not the name of an extended resource", resource)
	}
	if errs := validation.IsQualifiedName(resource); len(errs) > 0 {
		return fmt.Errorf("resource_name: %q: %s", resource, strings.Join(errs, "; "))
	}
	return nil
}

func (r registration) check(req *plugin.RegisterRequest) error {
	switch {
	case req.Version != plugin.Version:
		return fmt.Errorf("version: %q is not %s", req.Version, plugin.Version)
	case req.Endpoint == "" || req.Endpoint != filepath.Base(req.Endpoint) || req.Endpoint == "." || req.Endpoint == "..":
		return fmt.Errorf("endpoint: %q is not the name of a socket", req.Endpoint)
	}
	return checkName(req.ResourceName)
}

// add puts a plugin in the place of the one before it.
func (m *Manager) add(p *endpoint) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.plugins[p.resource]; old != nil {
		p.devices = old.devices // until it says otherwise
		old.cancel()
	}
	m.plugins[p.resource] = p
	m.log.Info("device plugin registered", "resource", p.resource)
}

// watch follows what devices a plugin has until it goes; they are unhealthy then,
// and those who have them keep them.
func (m *Manager) watch(ctx context.Context, p *endpoint) {
	defer p.conn.Close()
	defer p.cancel()
	err := m.follow(ctx, p)
	m.mu.Lock()
	current := m.plugins[p.resource] == p
	if current {
		for id := range p.devices {
			p.devices[id] = &plugin.Device{ID: id, Health: plugin.Unhealthy}
		}
	}
	m.mu.Unlock()
	if current && ctx.Err() == nil {
		m.log.Warn("device plugin has gone, its devices are not given to pods", "resource", p.resource, "error", err)
		m.changed()
	}
}

func (m *Manager) follow(ctx context.Context, p *endpoint) error {
	if p.options == nil {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		options, err := p.client.GetDevicePluginOptions(call, &plugin.Empty{})
		cancel()
		if err != nil {
			return err
		}
		m.mu.Lock()
		p.options = options
		m.mu.Unlock()
	}
	stream, err := p.client.ListAndWatch(ctx, &plugin.Empty{})
	if err != nil {
		return err
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		now := map[string]*plugin.Device{}
		for _, d := range resp.Devices {
			now[d.ID] = d
		}
		m.mu.Lock()
		p.devices = now
		m.mu.Unlock()
		m.log.Info("devices", "resource", p.resource, "count", len(now))
		m.changed()
	}
}

// allocate asks what is to be done for a container that gets these devices.
func (p *endpoint) allocate(ctx context.Context, ids []string) (Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := p.client.Allocate(ctx, &plugin.AllocateRequest{ContainerRequests: []*plugin.ContainerAllocateRequest{{DevicesIds: ids}}})
	if err == nil && len(resp.ContainerResponses) != 1 {
		err = errors.New("it does not answer for one container")
	}
	if err != nil {
		return Grant{}, fmt.Errorf("device plugin of %s: Allocate: %w", p.resource, err)
	}
	return Grant{IDs: ids, Response: resp.ContainerResponses[0]}, nil
}

func (p *endpoint) preStart(ctx context.Context, ids []string) error {
	ctx, cancel := context.WithTimeout(ctx, preStartTimeout)
	defer cancel()
	if _, err := p.client.PreStartContainer(ctx, &plugin.PreStartContainerRequest{DevicesIds: ids}); err != nil {
		return fmt.Errorf("device plugin of %s: PreStartContainer: %w", p.resource, err)
	}
	return nil
}
