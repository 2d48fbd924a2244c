package nri

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// claimSocket makes sure that nobody but root can connect to a socket that is
// to be made, and that none of another runtime is taken away.
func claimSocket(socket string) error {
	dir := filepath.Dir(socket)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s is writable by others than this user", dir)
	}
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err == nil {
		conn.Close()
		return fmt.Errorf("%s is in use by another runtime", socket)
	}
	return nil
}

// link is a connection with a plugin.
type link struct {
	plugins *Plugins
	client  *ttrpc.Client

	// guarded by plugins.mu
	name    string // "" until it has registered
	since   time.Time
	problem string // what it last failed at
}

// track is called by the adaptation for each connection, as an option of the
// client on it.
func (p *Plugins) track(c *ttrpc.Client) {
	l := &link{plugins: p, client: c, since: time.Now()}
	ttrpc.WithUnaryClientInterceptor(l.call)(c)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.links[l], p.connecting = true, l
	p.work.Go(func() {
		p.mu.Lock()
		ended := p.ended
		p.mu.Unlock()
		if ended {
			c.Close()
		}
		_ = c.UserOnCloseWait(context.Background()) // ends with the connection
		l.closed()
	})
}

// closed remembers a plugin that is not there any more.
func (l *link) closed() {
	p := l.plugins
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, l)
	if p.connecting == l {
		p.connecting = nil
	}
	if p.ended || l.name == "" {
		return
	}
	why := l.problem
	if why == "" {
		why = "it closed the connection"
	}
	p.log.Warn("an NRI plugin is gone", "plugin", l.name, "why", why)
	p.gone = append(p.gone, Plugin{Name: l.name, Since: l.since, Until: new(time.Now()), Problem: why})
	if len(p.gone) > maxGone {
		p.gone = p.gone[1:]
	}
}

// call sees every request to a plugin.
func (l *link) call(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
	err := invoke(ctx, req, resp)
	if err != nil {
		l.failed(req.Method, err)
		return err
	}
	// The adaptation passes evictions over.
	switch req.Method {
	case "CreateContainer":
		var r api.CreateContainerResponse
		if proto.Unmarshal(resp.Payload, &r) == nil && len(r.Evict) > 0 {
			l.plugins.evict(l.called(), r.Evict)
		}
	case "UpdateContainer":
		var r api.UpdateContainerResponse
		if proto.Unmarshal(resp.Payload, &r) == nil && len(r.Evict) > 0 {
			l.plugins.evict(l.called(), r.Evict)
		}
	}
	return nil
}

func (l *link) called() string {
	l.plugins.mu.Lock()
	defer l.plugins.mu.Unlock()
	return l.name
}

func (l *link) failed(method string, err error) {
	text := fmt.Sprintf("%s: %v", method, err)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		text = method + ": no answer in time"
	case errors.Is(err, ttrpc.ErrClosed):
		text = method + ": it closed the connection"
	}
	l.plugins.mu.Lock()
	defer l.plugins.mu.Unlock()
	l.problem = text
}

// serve sees every call of a plugin.
func (p *Plugins) serve(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	switch path.Base(info.FullMethod) {
	case "RegisterPlugin":
		return p.register(ctx, unmarshal, method)
	case "UpdateContainers":
		select {
		case p.updates <- struct{}{}:
			defer func() { <-p.updates }()
		default:
			return nil, status.Errorf(codes.ResourceExhausted, "more than %d updates are under way", maxUpdates)
		}
		var evict []*api.ContainerEviction
		r, err := method(ctx, func(m any) error {
			err := unmarshal(m)
			if req, ok := m.(*api.UpdateContainersRequest); ok {
				evict = req.Evict
			}
			return err
		})
		if err == nil {
			p.evict("(unsolicited)", evict)
		}
		return r, err
	}
	return method(ctx, unmarshal)
}

// register lets a connection register once. The adaptation takes one connection
// after another, so that it is known which one this is.
func (p *Plugins) register(ctx context.Context, unmarshal ttrpc.Unmarshaler, method ttrpc.Method) (any, error) {
	p.mu.Lock()
	l := p.connecting
	p.connecting = nil
	p.mu.Unlock()
	if l == nil {
		return nil, status.Errorf(codes.AlreadyExists, "the plugin is registered")
	}
	name := ""
	r, err := method(ctx, func(m any) error {
		err := unmarshal(m)
		if req, ok := m.(*api.RegisterPluginRequest); ok {
			name = req.PluginIdx + "-" + req.PluginName
		}
		return err
	})
	if err == nil {
		p.mu.Lock()
		l.name = name
		p.mu.Unlock()
		p.log.Info("an NRI plugin is here", "plugin", name)
	}
	return r, err
}
