package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"podstead/engine"
	"podstead/engine/config"
	"podstead/sys"
)

// configFile is the engine's configuration file and what the command line puts
// over it. The engine reads it at its start and whenever it changes; a copy of
// its last good version is kept in the run directory, so that an engine that is
// started again by its supervisor needs no good file.
type configFile struct {
	path     string // absolute
	optional bool   // it need not be there
	goodPath string // of the copy
	override func(*config.Config)

	content []byte        // as it was read last; nil: there was no file
	bad     error         // why that is not in force
	started config.Config // what the engine began with
}

// openConfig names the file; named is what the flag says.
func openConfig(named, runDir string, override func(*config.Config)) (*configFile, error) {
	f := &configFile{path: config.DefaultPath, optional: true, override: override, goodPath: filepath.Join(runDir, "engine.yaml")}
	if named == "" {
		return f, nil
	}
	var err error
	f.optional = false
	f.path, err = filepath.Abs(named)
	return f, err
}

// read reads the file as it is now.
func (f *configFile) read() (config.Config, error) {
	content, err := os.ReadFile(f.path)
	switch {
	case errors.Is(err, os.ErrNotExist) && f.optional:
		content = nil
	case err != nil:
		f.content = nil
		return config.Config{}, err
	}
	f.content = content
	return f.parse(f.path, content)
}

func (f *configFile) parse(path string, content []byte) (config.Config, error) {
	c, err := config.Parse(content)
	if err != nil {
		return config.Config{}, fmt.Errorf("%s: %w", path, err)
	}
	f.override(&c)
	if err := c.Validate(); err != nil {
		return config.Config{}, fmt.Errorf("command line over %s: %w", path, err)
	}
	return c, nil
}

// keep remembers the version that was read last as a good one.
func (f *configFile) keep() error {
	return sys.WriteFileAtomic(f.goodPath, f.content, 0o600, false)
}

// load reads the file for the engine's start. If it is bad, the last good
// version is taken, and bad tells why.
func (f *configFile) load() (c config.Config, bad, err error) {
	c, bad = f.read()
	if bad == nil {
		f.started = c
		return c, nil, f.keep()
	}
	content, err := os.ReadFile(f.goodPath)
	if err != nil {
		return config.Config{}, nil, bad
	}
	if c, err = f.parse(f.goodPath, content); err != nil {
		return config.Config{}, nil, errors.Join(bad, err)
	}
	f.started = c
	return c, bad, nil
}

// note is what Status says of the file.
func (f *configFile) note(now config.Config) engine.ConfigNote {
	n := engine.ConfigNote{File: f.path}
	if f.content == nil && f.bad == nil {
		n.File = ""
	}
	if f.bad != nil {
		n.Error = f.bad.Error()
	}
	for _, c := range f.started.Diff(now) {
		if !c.Live {
			n.NeedsRestart = append(n.NeedsRestart, c.Field)
		}
	}
	return n
}

// settle is how long a file has to be left alone before it is read: an editor
// may write it in parts.
const settle = 100 * time.Millisecond

// follow puts the file in force again whenever it changes, and when hangups has
// a signal, until the returned function is called. bad is what load said.
func (f *configFile) follow(hangups <-chan os.Signal, now config.Config, bad error, eng *engine.Engine, log *slog.Logger) (stop func()) {
	f.bad = bad
	eng.NoteConfig(f.note(now))
	if bad != nil {
		log.Error("the configuration file is bad; its last good version is in force", "file", f.path, "error", bad)
	}
	// The directory is watched, since editors replace the file.
	var changes <-chan fsnotify.Event
	w, err := fsnotify.NewWatcher()
	if err == nil {
		changes = w.Events
		if err = w.Add(filepath.Dir(f.path)); f.optional && errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		log.Warn("changes of the configuration file are not noticed; SIGHUP tells of them", "file", f.path, "error", err)
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		quiet := time.NewTimer(0) // it may have changed while the engine started
		defer quiet.Stop()
		for {
			select {
			case <-quit:
				return
			case <-changes:
				quiet.Reset(settle)
			case <-quiet.C:
				now = f.reload(now, false, eng, log)
			case <-hangups:
				now = f.reload(now, true, eng, log)
			}
		}
	}()
	return func() {
		close(quit)
		<-done
		if w != nil {
			w.Close()
		}
	}
}

// reload returns the configuration that is in force afterwards. Without asked it
// does nothing if the file is what it was.
func (f *configFile) reload(now config.Config, asked bool, eng *engine.Engine, log *slog.Logger) config.Config {
	before, bad := f.content, f.bad
	next, err := f.read()
	if !asked && bytes.Equal(before, f.content) && (err == nil) == (bad == nil) {
		return now
	}
	if err == nil {
		err = eng.Reload(next)
	}
	f.bad = err
	if err != nil {
		log.Error("the configuration file is bad; what was in force stays", "file", f.path, "error", err)
		eng.NoteConfig(f.note(now))
		return now
	}
	if err := f.keep(); err != nil {
		log.Error("copy of the configuration file", "file", f.goodPath, "error", err)
	}
	note := f.note(next)
	var live []string
	for _, c := range now.Diff(next) {
		if c.Live {
			live = append(live, c.Field)
		}
	}
	eng.NoteConfig(note)
	log.Info("the configuration file is read again", "file", f.path, "changed", strings.Join(live, ","))
	if len(note.NeedsRestart) > 0 {
		log.Warn("changes of the configuration file wait for a new start of the engine", "fields", strings.Join(note.NeedsRestart, ","))
	}
	return next
}

// hangups must be called early: a process that does not ask for SIGHUP dies of it.
func hangups() (<-chan os.Signal, func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	return c, func() { signal.Stop(c) }
}
