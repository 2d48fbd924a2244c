package engine

import (
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"

	"podstead/cri"
	"podstead/engine/config"
	"podstead/engine/handler"
	"podstead/image"
	"podstead/supervisor"
)

// settings are what the configuration file says now, and what was made of it.
type settings struct {
	config.Config
	handlers map[string]handler.Handler // by RuntimeClass handler; "" is the default
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
	s := &settings{Config: c, handlers: map[string]handler.Handler{"": e.builtin}}
	var errs []error
	for i, h := range c.Handlers {
		made, err := e.newHandler(h)
		if err != nil {
			errs = append(errs, fmt.Errorf("handlers[%d] (%s): %w", i, h.Name, err))
			continue
		}
		s.handlers[h.Name] = made
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if c.DefaultHandler != "" {
		s.handlers[""] = s.handlers[c.DefaultHandler]
	}
	e.settings.Store(s)
	return nil
}

// NoteConfig sets what Status --verbose tells about the configuration file.
func (e *Engine) NoteConfig(n ConfigNote) { e.note.Store(&n) }

func (e *Engine) newHandler(h config.Handler) (handler.Handler, error) {
	if h.Kind() == config.Builtin {
		return e.builtin, nil
	}
	return nil, fmt.Errorf("type %s is not there yet", h.Kind())
}

// handler returns the one for a RuntimeClass's handler name.
func (e *Engine) handler(name string) (handler.Handler, error) {
	h, ok := e.settings.Load().handlers[name]
	if !ok {
		return nil, cri.Errorf(codes.InvalidArgument, "runtime handler %q is not configured", name)
	}
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
