package pressure

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/cgroup"
)

// A group that fills its memory is told of.
func TestNear(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("cgroups are root's")
	}
	h, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	g := h.Group("/podstead-test-near")
	if err := g.Create(); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := errors.Join(g.Kill(ctx), g.Remove(ctx)); err != nil {
			t.Error(err)
		}
	})
	limit := int64(32 << 20)
	if err := g.Set(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		t.Fatal(err)
	}
	dir := g.Dir()
	if !h.Unified() {
		dir = filepath.Dir(g.JoinFile("memory"))
	}
	ctx, cancel := context.WithCancel(t.Context())
	told, done := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		done <- Near(ctx, dir, 16<<20, func() {
			select {
			case told <- struct{}{}:
			default:
			}
		})
	}()
	// The page cache of what is read counts, and never makes the kernel kill.
	file := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(file, make([]byte, 64<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(5 * time.Minute)
	for {
		cmd := exec.Command("sh", "-c", "read go; dd if="+file+" of="+file+".copy bs=1M 2>/dev/null")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if err := g.Attach(cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
		in.Close()
		_ = cmd.Wait()
		select {
		case err := <-done:
			t.Fatalf("it does not wait: %v", err)
		case <-deadline:
			t.Fatal("a group that is full is not told of")
		case <-told:
		case <-time.After(100 * time.Millisecond):
			continue // the watch may have begun after it
		}
		break
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("it ends with %v", err)
	}
}
