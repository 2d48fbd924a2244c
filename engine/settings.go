package engine

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"google.golang.org/grpc/codes"

	"podstead/cri"
	"podstead/engine/config"
	"podstead/engine/handler"
	"podstead/image"
	"podstead/network"
	"podstead/supervisor"
)

// settings are what the configuration file says now, and what was made of it.
type settings struct {
	config.Config
	handlers map[string]namedHandler // by RuntimeClass handler; "" is the default
}

// namedHandler is a handler with its configuration, which is kept with the pods
// that are made with it; the zero one is the built-in handler's.
type namedHandler struct {
	config.Handler
	is handler.Handler
}

// ConfigNote is what Status --verbose tells about the configuration file.
type ConfigNote struct {
	File string `json:"path,omitempty"` // "" if there is none
	// Error is why the file, as it is now, is not in force.
	Error string `json:"error,omitempty"`
	// NeedsRestart names fields that have changed and wait for a new start.
	NeedsRestart []string `json:"needsRestart,omitempty"`
}

// Reload puts a changed configuration in force for what is made from now on, as
// far as it can without a new start: see the fields of config.Config. On an
// error everything is as before.
func (e *Engine) Reload(c config.Config) error {
	s := &settings{Config: c, handlers: map[string]namedHandler{"": {is: e.builtin}}}
	for _, h := range c.Handlers {
		made, err := e.newHandler(h)
		if err != nil {
			return err
		}
		s.handlers[h.Name] = namedHandler{h, made}
	}
	if c.DefaultHandler != "" {
		s.handlers[""] = s.handlers[c.DefaultHandler]
	}
	old := e.settings.Swap(s)
	if old == nil {
		return nil // the boxes have been made with it
	}
	e.reloadBoxes(old.Config, c)
	return nil
}

// reloadBoxes hands other boxes what concerns them, if it has changed.
func (e *Engine) reloadBoxes(old, c config.Config) {
	if i, was := c.Images, old.Images; i.CertsDir != was.CertsDir || i.ParallelLayers != was.ParallelLayers || i.StallTimeout != was.StallTimeout {
		e.cfg.Images.SetFetching(image.Fetching{CertsDir: i.CertsDir, ParallelLayers: i.ParallelLayers, StallTimeout: i.StallTimeout.Duration})
	}
	cni := func(n config.Network) network.CNI {
		return network.CNI{ConfDir: n.CNIConfDir, BinDirs: n.CNIBinDirs, Networks: n.CNINetworks}
	}
	if now := cni(c.Network); !reflect.DeepEqual(now, cni(old.Network)) {
		e.cfg.Network.SetCNI(now)
	}
	e.devices.SetDirs(c.CDI.Dirs)
	e.streams.SetTimeouts(timeouts(c.Streams))
	if c.Network.ReadySlots == old.Network.ReadySlots {
		return
	}
	if err := e.cfg.Network.SetSlots(c.Network.ReadySlots); err != nil {
		e.log.Warn("networks that were ready for pods are left", "error", err)
	}
}

// NoteConfig sets what Status --verbose tells about the configuration file.
func (e *Engine) NoteConfig(n ConfigNote) { e.note.Store(&n) }

// newHandler makes a handler of its configuration. A runtime that cannot be
// asked what it can do is none the less there: it may be installed later.
func (e *Engine) newHandler(c config.Handler) (handler.Handler, error) {
	root := cmp.Or(c.Root, filepath.Join(e.handlersDir(), c.Name))
	switch c.Kind() {
	case config.Builtin:
		return e.builtin, nil
	case config.Shim:
		self, err := e.program()
		h := &handler.Shim{
			OCI: handler.OCI{
				Supervisor: e.cfg.Supervisor, Name: c.Name, Program: c.Program(), Root: root, RunDir: e.cfg.RunDir,
				// Pods of shims have no user namespaces, whatever the runtime says.
				Host: handler.Features{RecursiveReadOnlyMounts: e.builtin.Supports.RecursiveReadOnlyMounts},
			},
			Self: self, ConfigPath: c.ConfigPath,
		}
		return h.Init(), err
	case config.OCI:
		h := &handler.OCI{
			Supervisor: e.cfg.Supervisor, Name: c.Name, Program: c.Program(), Args: c.Args, Root: root, RunDir: e.cfg.RunDir,
			Host: e.builtin.Supports,
		}
		if err := h.Trouble(); err != nil {
			e.log.Warn("a handler is not as it should be", "handler", c.Name, "error", err)
		}
		return h, nil
	}
	return nil, fmt.Errorf("handler %s: type %s is not known", c.Name, c.Kind())
}

func (e *Engine) program() (string, error) {
	if e.cfg.Program != "" {
		return e.cfg.Program, nil
	}
	return os.Executable()
}

// handlersDir has the state of runtimes that were given no other place for it.
func (e *Engine) handlersDir() string { return filepath.Join(e.cfg.RunDir, "handlers") }

// handler returns the one for a RuntimeClass's handler name.
func (e *Engine) handler(name string) (namedHandler, error) {
	h, ok := e.settings.Load().handlers[name]
	if !ok {
		return h, cri.Errorf(codes.InvalidArgument, "runtime handler %q is not configured", name)
	}
	return h, nil
}

// handlerOf returns the handler that something was made with, whatever the
// configuration says now.
func (e *Engine) handlerOf(c config.Handler) (handler.Handler, error) {
	if c.Name == "" {
		return e.builtin, nil
	}
	if h := e.settings.Load().handlers[c.Name]; reflect.DeepEqual(h.Handler, c) {
		return h.is, nil
	}
	e.mu.Lock()
	retired := e.retired
	e.mu.Unlock()
	for _, h := range retired {
		if reflect.DeepEqual(h.Handler, c) {
			return h.is, nil
		}
	}
	h, err := e.newHandler(c)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	e.retired = append(e.retired, namedHandler{c, h})
	e.mu.Unlock()
	return h, nil
}

func (e *Engine) logFile(path string) supervisor.LogFile {
	logs := e.settings.Load().Logs
	return supervisor.LogFile{Path: path, MaxBytes: logs.MaxBytes.N, MaxFiles: logs.MaxFiles}
}

// isPinned tells whether the configuration names an image.
func (e *Engine) isPinned(img image.Image) bool {
	pinned := e.settings.Load().Images.Pinned
	matches := func(name string) bool { return config.Matches(pinned, name) }
	return slices.ContainsFunc(img.RepoTags, matches) || slices.ContainsFunc(img.RepoDigests, matches)
}
