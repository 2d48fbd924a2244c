package restart

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

// faithful is an NRI plugin that connects again whenever it can.
type faithful struct {
	mu    sync.Mutex
	known [][]string // containers that it was told of, each time that it came
}

func (f *faithful) Synchronize(_ context.Context, _ []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	var ids []string
	for _, c := range containers {
		ids = append(ids, c.Id)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known = append(f.known, ids)
	return nil, nil
}

func (f *faithful) CreateContainer(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	a := &api.ContainerAdjustment{}
	a.AddEnv("PLUGIN", "here")
	return a, nil, nil
}

func (f *faithful) times() [][]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.known)
}

// run connects until ctx ends.
func (f *faithful) run(ctx context.Context, t *testing.T, socket string) {
	for ctx.Err() == nil {
		lost := make(chan struct{})
		s, err := stub.New(f, stub.WithPluginIdx("10"), stub.WithPluginName("faithful"), stub.WithSocketPath(socket),
			stub.WithOnClose(sync.OnceFunc(func() { close(lost) })))
		if err != nil {
			t.Error(err)
			return
		}
		if s.Start(ctx) == nil {
			select {
			case <-lost:
			case <-ctx.Done():
			}
		}
		s.Stop()
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond): // between two attempts
		}
	}
}

// TestPluginComesBack kills the engine under an NRI plugin, which then finds
// what it knew.
func TestPluginComesBack(t *testing.T) {
	w := newWorld(t)
	f := &faithful{}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { f.run(ctx, t, w.node.Run+"/nri.sock") })
	defer wg.Wait()
	defer cancel()
	w.until("the plugin is there", func() bool { return len(f.times()) == 1 })
	ids := []string{w.start("first", "sleep 100000")}
	for i := range 3 {
		w.kill("podstead", "cri")
		w.until("the plugin is back", func() bool { return len(f.times()) == i+2 })
		last := f.times()[i+1]
		slices.Sort(last)
		slices.Sort(ids)
		if !slices.Equal(last, ids) {
			t.Errorf("the plugin was told of %v, want %v", last, ids)
		}
		id := w.start("c"+string(rune('0'+i)), "sleep 100000")
		if got := w.exec(id, "sh", "-c", "echo $PLUGIN"); got != "here\n" {
			t.Errorf("the plugin's variable is %q", got)
		}
		ids = append(ids, id)
	}
}
