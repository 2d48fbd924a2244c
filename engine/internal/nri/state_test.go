package nri

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/nri/pkg/api"
)

// nothing is a runtime without containers.
type nothing struct{}

func (nothing) Objects() ([]*api.PodSandbox, []*api.Container) { return nil, nil }

func (nothing) UpdateContainer(context.Context, string, *api.LinuxResources) error { return nil }

func (nothing) EvictContainer(context.Context, string, string) error { return nil }

func TestNoPluginsAtAll(t *testing.T) {
	var none *Plugins
	none.Open()
	none.Hold()()
	if st := none.State(); !none.Idle() || len(st.Plugins) > 0 || st.Problem != "" {
		t.Errorf("nobody: %+v", st)
	}
	none.Close()
}

// TestSocketGoesWithUs: a socket that is left behind is replaced, and ours does
// not stay.
func TestSocketGoesWithUs(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "nri.sock")
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		p := New(Options{Socket: socket, Runtime: nothing{}, Log: slog.New(slog.DiscardHandler)})
		p.Open()
		if st := p.State(); st.Problem != "" || st.Socket != socket {
			t.Errorf("state is %+v", st)
		}
		p.Close()
		if _, err := os.Lstat(socket); !os.IsNotExist(err) {
			t.Errorf("the socket stays (%v)", err)
		}
	}
}
