package peer

import (
	"errors"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// pauseRef is the image of sandboxes where a test does not care.
const pauseRef = "test.local/pause:1"

// RunDocker is StartDocker for the time of a test, which is skipped where Docker
// is not installed.
func RunDocker(t testing.TB, settings map[string]any) *Docker {
	t.Helper()
	d, err := StartDocker(t.Context(), filepath.Join(t.TempDir(), "docker"), settings)
	keep(t, "dockerd", d, err)
	return d
}

// RunContainerd is StartContainerdFrom for the time of a test, which is skipped
// where containerd is not installed. It has a pause image and the given ones.
func RunContainerd(t testing.TB, programs string, images map[string]v1.Image) *Containerd {
	t.Helper()
	dir := t.TempDir()
	var c *Containerd
	var err error
	if programs == "" {
		c, err = StartContainerd(t.Context(), filepath.Join(dir, "containerd"), pauseRef)
	} else {
		c, err = StartContainerdFrom(t.Context(), programs, filepath.Join(dir, "containerd"), pauseRef)
	}
	keep(t, "containerd", c, err)
	pause, err := Pause()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]v1.Image{pauseRef: pause}
	for ref, image := range images {
		all[ref] = image
	}
	archive := filepath.Join(dir, "images.tar")
	if err := Archive(archive, all); err != nil {
		t.Fatal(err)
	}
	if err := c.Import(t.Context(), archive); err != nil {
		t.Fatal(err)
	}
	return c
}

// keep stops a daemon when the test ends.
func keep(t testing.TB, name string, daemon interface {
	LogTail() string
	Stop() error
}, err error) {
	t.Helper()
	if errors.Is(err, ErrNotInstalled) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s's log ends with:\n%s", name, daemon.LogTail())
		}
		if err := daemon.Stop(); err != nil {
			t.Error(err)
		}
	})
}
