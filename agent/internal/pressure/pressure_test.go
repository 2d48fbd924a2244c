package pressure

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"podstead/agent/internal/eviction"
)

func TestReadsTheHost(t *testing.T) {
	seen, err := Host{NodeFs: t.TempDir(), ImageFs: "/"}.Read()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []eviction.Signal{eviction.MemoryAvailable, eviction.PidsAvailable, eviction.NodeFsAvailable, eviction.ImageFsAvailable} {
		if r := seen[s]; r.Available <= 0 || r.Capacity < r.Available {
			t.Errorf("%s: %+v", s, r)
		}
	}
}

func TestMissingFileSystemIsNamed(t *testing.T) {
	seen, err := Host{NodeFs: "/nowhere"}.Read()
	if err == nil || !strings.Contains(err.Error(), "nodefs.available: statfs /nowhere") {
		t.Error(err)
	}
	if _, ok := seen[eviction.NodeFsAvailable]; ok || seen[eviction.MemoryAvailable].Capacity == 0 {
		t.Errorf("%+v", seen)
	}
}

func TestMeasure(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("a", 1<<20)
	write("deep/er/b", 1<<20)
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "again")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/", filepath.Join(dir, "root")); err != nil {
		t.Fatal(err)
	}
	d, err := Measure(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	// dir, a, deep, er, b, root: the second name of a counts nothing.
	if d.Inodes != 6 || d.Bytes < 2<<20 || d.Bytes > 2<<20+64<<10 {
		t.Errorf("%+v", d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Measure(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if d, err := Measure(t.Context(), filepath.Join(dir, "none")); err != nil || d != (eviction.Disk{}) {
		t.Error(d, err)
	}
	write(strings.Repeat("x/", maxDepth+2)+"c", 1)
	if _, err := Measure(t.Context(), dir); !errors.Is(err, errDeep) {
		t.Error(err)
	}
}

// TestStallsAreToldUntilTheEnd sees to it that the kernel takes the trigger and
// that nothing waits when the context ends.
func TestStallsAreToldUntilTheEnd(t *testing.T) {
	if f, err := os.OpenFile("/proc/pressure/memory", os.O_RDWR, 0); err != nil {
		t.Skip(err)
	} else {
		f.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- Stalls(ctx, func() {}) }()
	select {
	case err := <-done:
		t.Fatal(err)
	default:
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
