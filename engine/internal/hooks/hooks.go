// Package hooks adds hooks to containers that files in directories describe, as
// Podman and CRI-O do (oci-hooks(5), version 1.0.0):
//
//	{
//		"version": "1.0.0",
//		"hook": {"path": "/usr/libexec/hook", "args": ["hook", "start"], "env": ["A=B"], "timeout": 10},
//		"when": {"annotations": {"^com\\.example/gpu$": "^yes$"}},
//		"stages": ["createRuntime", "poststop"]
//	}
//
// The files are the administrator's and are trusted; what they are matched with
// (annotations, the command) is the request's. The engine calls it for each
// container; nothing is kept, so that a file counts from when it is written.
package hooks

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// file is one description.
type file struct {
	Version string     `json:"version"`
	Hook    specs.Hook `json:"hook"`
	When    when       `json:"when"`
	Stages  []string   `json:"stages"`
}

// when tells which containers get the hook: those for which all that is set
// holds.
type when struct {
	Always        *bool             `json:"always"`
	Annotations   map[string]string `json:"annotations"`
	Commands      []string          `json:"commands"`
	HasBindMounts *bool             `json:"hasBindMounts"`
}

// Container is what hooks are chosen by.
type Container struct {
	Annotations   map[string]string
	Command       string // the program
	HasBindMounts bool   // that the request asks for
}

// Add adds the hooks of all files in dirs, *.json by name, that want this
// container. A file of a later directory replaces one of the same name. A file
// that cannot be read, or does not make sense, is an error that names it: the
// container might go without what it must have.
func Add(s *specs.Spec, dirs []string, c Container) error {
	files := map[string]string{}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("hooks.dirs: %w", err)
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".json") {
				files[e.Name()] = filepath.Join(dir, e.Name())
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := add(s, files[name], c); err != nil {
			return fmt.Errorf("hooks.dirs: %s: %w", files[name], err)
		}
	}
	return nil
}

func add(s *specs.Spec, path string, c Container) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	d := json.NewDecoder(f)
	d.DisallowUnknownFields()
	var h file
	if err := d.Decode(&h); err != nil {
		return err
	}
	if h.Version != "1.0.0" {
		return fmt.Errorf("version: %q is not 1.0.0", h.Version)
	}
	if !filepath.IsAbs(h.Hook.Path) {
		return fmt.Errorf("hook.path: %q is not absolute", h.Hook.Path)
	}
	wanted, err := h.When.match(c)
	if err != nil || len(h.Stages) == 0 {
		return errors.Join(err, noStages(h.Stages))
	}
	if s.Hooks == nil && wanted {
		s.Hooks = &specs.Hooks{}
	}
	for i, stage := range h.Stages {
		list := stageOf(s.Hooks, stage)
		if list == nil {
			return fmt.Errorf("stages[%d]: %q is no stage", i, stage)
		}
		if wanted {
			*list = append(*list, h.Hook)
		}
	}
	return nil
}

func noStages(stages []string) error {
	if len(stages) > 0 {
		return nil
	}
	return errors.New("stages: there are none")
}

// stageOf returns the list of a stage, nil if there is no such. h may be nil.
func stageOf(h *specs.Hooks, stage string) *[]specs.Hook {
	if h == nil {
		h = &specs.Hooks{}
	}
	return map[string]*[]specs.Hook{
		"prestart":      &h.Prestart, //nolint:staticcheck // deprecated, but widely used
		"createRuntime": &h.CreateRuntime, "createContainer": &h.CreateContainer,
		"startContainer": &h.StartContainer, "poststart": &h.Poststart, "poststop": &h.Poststop,
	}[stage]
}

// match tells whether all that is set holds; nothing set matches nothing.
func (w when) match(c Container) (bool, error) {
	all := w.Always != nil || len(w.Annotations) > 0 || len(w.Commands) > 0 || w.HasBindMounts != nil
	if w.Always != nil {
		all = all && *w.Always
	}
	if w.HasBindMounts != nil {
		all = all && *w.HasBindMounts == c.HasBindMounts
	}
	for _, key := range slices.Sorted(maps.Keys(w.Annotations)) {
		k, err := regexp.Compile(key)
		if err != nil {
			return false, fmt.Errorf("when.annotations: %w", err)
		}
		v, err := regexp.Compile(w.Annotations[key])
		if err != nil {
			return false, fmt.Errorf("when.annotations[%q]: %w", key, err)
		}
		found := false
		for name, value := range c.Annotations {
			found = found || k.MatchString(name) && v.MatchString(value)
		}
		all = all && found
	}
	found := len(w.Commands) == 0
	for i, command := range w.Commands {
		r, err := regexp.Compile(command)
		if err != nil {
			return false, fmt.Errorf("when.commands[%d]: %w", i, err)
		}
		found = found || r.MatchString(c.Command)
	}
	return all && found, nil
}
