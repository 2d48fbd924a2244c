// Package registry finds plugins by the sockets that they put into a directory
// (the kubelet's plugins_registry, pluginregistration/v1), asks each what it is,
// and hands it to who takes such plugins. A plugin whose socket goes is gone.
package registry

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// callTimeout bounds a plugin's answers; one that does not answer is asked again
// after a while.
const (
	callTimeout = 10 * time.Second
	again       = 15 * time.Second
)

// Taker takes plugins of one type.
type Taker interface {
	// Take begins to use a plugin, or says why not.
	Take(ctx context.Context, name, endpoint string, versions []string) error
	// Lose ends that.
	Lose(name, endpoint string)
}

// Registry watches a directory.
type Registry struct {
	Dir    string
	Takers map[string]Taker // by type ("CSIPlugin")
	Log    *slog.Logger

	have map[string]plugin // by socket; Run's own
}

// plugin is one that was taken.
type plugin struct {
	kind, name, endpoint string
	socket               string
	stamp                time.Time // of its socket
}

// Run watches until ctx ends.
func (r *Registry) Run(ctx context.Context) error {
	r.have = map[string]plugin{}
	if err := os.MkdirAll(r.Dir, 0o750); err != nil {
		return fmt.Errorf("registration of plugins: %w", err)
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("registration of plugins: %w", err)
	}
	defer w.Close()
	if err := w.Add(r.Dir); err != nil {
		return fmt.Errorf("registration of plugins: %s: %w", r.Dir, err)
	}
	tick := time.NewTicker(again)
	defer tick.Stop()
	for {
		r.look(ctx, w)
		select {
		case <-ctx.Done():
			return nil
		case err := <-w.Errors:
			r.Log.Warn("plugins may be found later", "error", err)
		case <-w.Events:
		case <-tick.C:
		}
	}
}

// look compares the sockets with what was taken.
func (r *Registry) look(ctx context.Context, w *fsnotify.Watcher) {
	found := map[string]time.Time{}
	err := filepath.WalkDir(r.Dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil // gone
		case d.IsDir() && path != r.Dir:
			if strings.HasPrefix(d.Name(), ".") {
				return filepath.SkipDir
			}
			return w.Add(path) // adding twice is harmless
		case d.Type() == fs.ModeSocket && !strings.HasPrefix(d.Name(), "."):
			if st, err := d.Info(); err == nil {
				found[path] = st.ModTime()
			}
		}
		return nil
	})
	if err != nil {
		r.Log.Warn("plugins may be found later", "error", err)
	}
	for socket, p := range r.have {
		if stamp, ok := found[socket]; !ok || !stamp.Equal(p.stamp) {
			r.Log.Info("plugin has gone", "type", p.kind, "name", p.name)
			r.Takers[p.kind].Lose(p.name, p.endpoint)
			delete(r.have, socket)
		}
	}
	var all sync.WaitGroup
	registered := make(chan plugin, len(found))
	for socket, stamp := range found {
		if _, ok := r.have[socket]; ok {
			continue
		}
		all.Go(func() { // one that does not answer holds up no other
			p, err := r.register(ctx, socket)
			if err != nil {
				r.Log.Warn("a plugin is not registered", "socket", socket, "error", err)
				return
			}
			p.socket, p.stamp = socket, stamp
			registered <- p
		})
	}
	all.Wait()
	close(registered)
	for p := range registered {
		r.have[p.socket] = p
		r.Log.Info("plugin registered", "type", p.kind, "name", p.name)
	}
}

// awaitListener gives a socket that was just made a moment to be listened on.
func awaitListener(ctx context.Context, socket string) {
	const tries, pause = 10, 50 * time.Millisecond
	for range tries {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func (r *Registry) register(ctx context.Context, socket string) (plugin, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return plugin{}, err
	}
	defer conn.Close()
	awaitListener(ctx, socket)
	client := api.NewRegistrationClient(conn)
	info, err := client.GetInfo(ctx, &api.InfoRequest{})
	if err != nil {
		return plugin{}, fmt.Errorf("GetInfo: %w", err)
	}
	p := plugin{kind: info.Type, name: info.Name, endpoint: info.Endpoint}
	if p.endpoint == "" {
		p.endpoint = socket
	}
	if taker := r.Takers[info.Type]; taker == nil {
		err = fmt.Errorf("plugins of type %q are not supported", info.Type)
	} else {
		err = taker.Take(ctx, p.name, p.endpoint, info.SupportedVersions)
	}
	status := &api.RegistrationStatus{PluginRegistered: err == nil}
	if err != nil {
		status.Error = err.Error()
	}
	if _, told := client.NotifyRegistrationStatus(ctx, status); told != nil && err == nil {
		r.Takers[p.kind].Lose(p.name, p.endpoint)
		err = fmt.Errorf("NotifyRegistrationStatus: %w", told)
	}
	return p, err
}
