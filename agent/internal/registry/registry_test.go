package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	api "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const patience = 5 * time.Minute

// fakePlugin registers itself; what it says and does is a test's.
type fakePlugin struct {
	api.UnimplementedRegistrationServer
	info   *api.PluginInfo
	hangs  bool // when it is asked
	deaf   bool // when it is told
	told   chan *api.RegistrationStatus
	server *grpc.Server
}

func (p *fakePlugin) GetInfo(ctx context.Context, _ *api.InfoRequest) (*api.PluginInfo, error) {
	if p.hangs {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return p.info, nil
}

func (p *fakePlugin) NotifyRegistrationStatus(_ context.Context, s *api.RegistrationStatus) (*api.RegistrationStatusResponse, error) {
	p.told <- s
	if p.deaf {
		return nil, errors.New("deaf")
	}
	return &api.RegistrationStatusResponse{}, nil
}

// start serves a plugin at a socket that appears as a whole.
func (p *fakePlugin) start(t *testing.T, socket string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	p.told = make(chan *api.RegistrationStatus, 10)
	p.server = grpc.NewServer()
	api.RegisterRegistrationServer(p.server, p)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	go p.server.Serve(l)
	t.Cleanup(p.server.Stop)
}

// taker takes plugins whose names do not begin with "bad".
type taker chan string

func (k taker) Take(_ context.Context, name, endpoint string, versions []string) error {
	if strings.HasPrefix(name, "bad") {
		return fmt.Errorf("%s is not wanted", name)
	}
	k <- fmt.Sprintf("take %s %s %v", name, filepath.Base(endpoint), versions)
	return nil
}

func (k taker) Lose(name, endpoint string) { k <- "lose " + name + " " + filepath.Base(endpoint) }

// run watches a directory until the test ends.
func run(t *testing.T) (dir string, k taker) {
	t.Helper()
	base, err := os.MkdirTemp("", "podstead-reg") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	k = make(taker, 100)
	r := &Registry{Dir: filepath.Join(base, "reg"), Takers: map[string]Taker{"CSIPlugin": k}, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	if err := os.MkdirAll(r.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(base); err != nil {
			t.Error(err)
		}
	})
	return r.Dir, k
}

func (k taker) expect(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for range want {
		select {
		case one := <-k:
			got = append(got, one)
		case <-time.After(patience):
			t.Fatalf("heard %q, want %q", got, want)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("heard %q, want %q", got, want)
	}
}

func (p *fakePlugin) expect(t *testing.T, text string) {
	t.Helper()
	select {
	case s := <-p.told:
		if s.PluginRegistered != (text == "") || !strings.Contains(s.Error, text) {
			t.Errorf("%s was told %v, want %q", p.info.Name, s, text)
		}
	case <-time.After(patience):
		t.Fatalf("%s was told nothing", p.info.Name)
	}
}

func csiPlugin(name string) *fakePlugin {
	return &fakePlugin{info: &api.PluginInfo{Type: "CSIPlugin", Name: name, Endpoint: "/x/" + name + ".sock", SupportedVersions: []string{"1.0.0"}}}
}

// TestRegistration has plugins come, go, and come again.
func TestRegistration(t *testing.T) {
	dir, k := run(t)
	a := csiPlugin("a")
	a.start(t, filepath.Join(dir, "a.sock"))
	a.expect(t, "")
	k.expect(t, "take a a.sock [1.0.0]")
	below := csiPlugin("below")
	below.info.Endpoint = "" // the same socket
	below.start(t, filepath.Join(dir, "sub", "reg.sock"))
	below.expect(t, "")
	k.expect(t, "take below reg.sock [1.0.0]")
	a.server.Stop() // takes its socket away
	k.expect(t, "lose a a.sock")
	again := csiPlugin("a")
	again.info.SupportedVersions = []string{"1.1.0"}
	again.start(t, filepath.Join(dir, "a.sock"))
	again.expect(t, "")
	k.expect(t, "take a a.sock [1.1.0]")
	// Another takes the place of the socket without its having gone in between.
	other := csiPlugin("a")
	other.info.SupportedVersions = []string{"1.2.0"}
	other.start(t, filepath.Join(filepath.Dir(dir), "new.sock"))
	if err := os.Chtimes(filepath.Join(filepath.Dir(dir), "new.sock"), time.Now(), time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(filepath.Dir(dir), "new.sock"), filepath.Join(dir, "a.sock")); err != nil {
		t.Fatal(err)
	}
	k.expect(t, "lose a a.sock", "take a a.sock [1.2.0]")
	other.expect(t, "")
}

// TestHostileRegistrations has sockets that nobody listens on, or somebody who is
// of no use; who is good beside them is taken.
func TestHostileRegistrations(t *testing.T) {
	dir, k := run(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "dead.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := os.WriteFile(filepath.Join(dir, "file.sock"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	hidden := csiPlugin("hidden")
	hidden.start(t, filepath.Join(dir, ".hidden.sock"))
	hidden.start(t, filepath.Join(dir, ".dir", "hidden.sock"))
	bad := csiPlugin("bad")
	bad.start(t, filepath.Join(dir, "bad.sock"))
	bad.expect(t, "bad is not wanted")
	strange := csiPlugin("strange")
	strange.info.Type = "../Plugin"
	strange.start(t, filepath.Join(dir, "strange.sock"))
	strange.expect(t, `plugins of type "../Plugin" are not supported`)
	deaf := csiPlugin("deaf")
	deaf.deaf = true
	deaf.start(t, filepath.Join(dir, "deaf.sock"))
	deaf.expect(t, "")
	k.expect(t, "take deaf deaf.sock [1.0.0]", "lose deaf deaf.sock")
	hangs, good := csiPlugin("hangs"), csiPlugin("good")
	hangs.hangs = true
	hangs.start(t, filepath.Join(dir, "0hangs.sock"))
	good.start(t, filepath.Join(dir, "good.sock"))
	for { // the deaf one is tried again with every look
		select {
		case got := <-k:
			if got == "take good good.sock [1.0.0]" {
				good.expect(t, "")
				return
			}
			if strings.Contains(got, "hidden") || strings.Contains(got, "hangs") {
				t.Errorf("heard %s", got)
			}
		case <-time.After(patience):
			t.Fatal("the good one was not taken")
		}
	}
}
