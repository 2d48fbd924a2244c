package restart

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/remote"
	"podstead/sys"
	"podstead/test/host"
)

// inForce is what Status tells of the configuration.
type inForce struct {
	File struct {
		Path, Error  string
		NeedsRestart []string
	}
	Settings struct {
		Logs    struct{ MaxBytes, MaxFiles int }
		Streams struct{ IdleTimeout string }
	}
	handlers []string
}

func (w *world) config() (c inForce) {
	w.Helper()
	w.call(func(ctx context.Context, r *remote.Runtime) error {
		s, err := r.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
		if err != nil {
			return err
		}
		for _, h := range s.RuntimeHandlers {
			c.handlers = append(c.handlers, h.Name)
		}
		return json.Unmarshal([]byte(s.Info["config"]), &c)
	})
	return c
}

// TestReload changes the configuration file below a running engine.
func TestReload(t *testing.T) {
	file := filepath.Join(t.TempDir(), "engine.yaml")
	write := func(text string) {
		t.Helper()
		if err := sys.WriteFileAtomic(file, []byte(text), 0o600, false); err != nil {
			t.Fatal(err)
		}
	}
	write("logs: {maxFiles: 3}")
	w := newWorld(t, "--config", file, "--log-max-bytes", "1000000")
	if c := w.config(); c.File.Path != file || c.Settings.Logs.MaxFiles != 3 || c.Settings.Logs.MaxBytes != 1000000 {
		t.Fatalf("at the start: %+v", c)
	}

	// It is noticed; what the command line says still counts; what cannot change
	// is named.
	write("handlers: [{name: own, type: builtin}]\nlogs: {maxFiles: 4, maxBytes: 5Mi}\nnetwork: {cniConfDir: /nowhere}\nnri: {disabled: true}")
	w.until("the change is in force", func() bool { return w.config().Settings.Logs.MaxFiles == 4 })
	c := w.config()
	if c.Settings.Logs.MaxBytes != 1000000 || !slices.Equal(c.File.NeedsRestart, []string{"nri.disabled"}) ||
		!slices.Equal(c.handlers, []string{"", "own"}) {
		t.Errorf("after the change: %+v", c)
	}

	// A bad file changes nothing, and a new engine starts with the last good one.
	write("logs: {maxFiles: 1}")
	w.until("the bad file is noticed", func() bool { return w.config().File.Error != "" })
	for range 2 {
		c = w.config()
		if !strings.Contains(c.File.Error, file+": logs.maxFiles: ") || c.Settings.Logs.MaxFiles != 4 {
			t.Errorf("with a bad file: %+v", c)
		}
		w.kill("podstead", "cri")
	}

	// SIGHUP to what a service manager knows has it read again, even if there is
	// nothing to be noticed: the file is somewhere else than it seems.
	elsewhere := filepath.Join(t.TempDir(), "engine.yaml")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, file); err != nil {
		t.Fatal(err)
	}
	w.until("the missing file is noticed", func() bool { return strings.Contains(w.config().File.Error, "no such file") })
	if err := os.WriteFile(elsewhere, []byte("logs: {maxFiles: 7}\nnetwork: {cniConfDir: /nowhere}\nnri: {disabled: true}"), 0o600); err != nil {
		t.Fatal(err)
	}
	engine := w.find("podstead", "cri")
	if err := syscall.Kill(w.find("podstead-supervisor", "run"), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	w.until("SIGHUP is obeyed", func() bool { return w.config().Settings.Logs.MaxFiles == 7 })
	if c = w.config(); c.File.Error != "" || c.File.NeedsRestart != nil || w.find("podstead", "cri") != engine {
		t.Errorf("after SIGHUP: %+v, engine %d became %d", c, engine, w.find("podstead", "cri"))
	}
}

// TestBadConfigurationAtTheStart is told to the person who starts the node.
func TestBadConfigurationAtTheStart(t *testing.T) {
	host.Require(t)
	file := filepath.Join(t.TempDir(), "engine.yaml")
	if err := os.WriteFile(file, []byte("handlers: [{name: runc, color: red}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	run, err := os.MkdirTemp("/run", "podstead-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(run)
	out, err := exec.Command(os.Getenv(programVariable), "cri", "--state", t.TempDir(), "--run", run, "--config", file).CombinedOutput()
	if want := file + `: unknown field "handlers[0].color"`; err == nil || !strings.Contains(string(out), want) {
		t.Errorf("%v: %s, want %s", err, out, want)
	}
}
