package engine

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/internal/nri"
)

// pluginState is what Status tells a person.
func (n *node) pluginState() nri.State {
	n.t.Helper()
	st, err := n.Status(context.Background(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		n.t.Fatal(err)
	}
	var s nri.State
	if err := json.Unmarshal([]byte(st.Info["nri"]), &s); err != nil {
		n.t.Fatalf("%s: %v", st.Info["nri"], err)
	}
	return s
}

// gone waits until a plugin is not there any more, and returns why.
func (n *node) gone(name string) string {
	n.t.Helper()
	why := ""
	eventually(n.t, name+" is gone", func() bool {
		for _, p := range n.pluginState().Gone {
			if p.Name == name {
				why = p.Problem
			}
		}
		return why != ""
	})
	return why
}

// TestPluginThatHangs is dropped, named, and missed by nobody.
func TestPluginThatHangs(t *testing.T) {
	n := newNode(t).withPlugins()
	hang := make(chan struct{})
	defer close(hang)
	n.connect("10-hangs", &plugin{create: func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		<-hang
		return nil, nil, nil
	}})
	good := n.connect("20-good", &plugin{})
	if got := n.pluginState().Plugins; len(got) != 2 || got[0].Name != "10-hangs" || got[1].Name != "20-good" {
		t.Errorf("status names %v", got)
	}
	pod := n.run(n.pod())
	n.exited(n.begin(pod, n.script("true")))
	if why := n.gone("10-hangs"); !strings.Contains(why, "CreateContainer: no answer") {
		t.Errorf("it is gone because: %s", why)
	}
	if told := strings.Join(good.told(), ","); !strings.Contains(told, "CreateContainer c2") {
		t.Errorf("the plugin after it was told %s", told)
	}
	n.exited(n.begin(pod, n.script("true")))
}

// TestPluginThatDies closes its connection in the middle of a request.
func TestPluginThatDies(t *testing.T) {
	n := newNode(t).withPlugins()
	p := &plugin{}
	p.create = func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		p.stub.Stop()
		return nil, nil, nil
	}
	n.connect("10-dies", p)
	pod := n.run(n.pod())
	n.exited(n.begin(pod, n.script("true")))
	n.gone("10-dies")
	if !n.plugins.Idle() {
		t.Error("the engine still has something to say")
	}
	n.connect("10-dies", &plugin{}) // again
}

// TestPluginMustNotBeMissed is about the policy by which a plugin's failure is
// the request's.
func TestPluginMustNotBeMissed(t *testing.T) {
	n := newNode(t).withPlugins()
	p := &plugin{}
	p.create = func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		p.stub.Stop()
		return nil, nil, nil
	}
	n.connect("10-must", p, stub.WithFailurePolicy(&api.FailurePolicy{FailRequest: true}))
	_, err := n.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{PodSandboxId: n.run(n.pod()), Config: n.script("true")})
	if err == nil || !strings.Contains(err.Error(), "10-must") {
		t.Errorf("error is %v, want one that names the plugin", err)
	}
}

// TestNoiseOnThePluginSocket comes from who does not speak the protocol, or
// says nothing at all, and keeps nobody from anything.
func TestNoiseOnThePluginSocket(t *testing.T) {
	n := newNode(t).withPlugins()
	for _, noise := range []string{"", "GET / HTTP/1.1\r\n\r\n", strings.Repeat("\x00", 64<<10), strings.Repeat("\xff", 64<<10)} {
		conn, err := net.Dial("unix", n.cfg.Settings.NRI.Socket)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte(noise)) // the engine may have closed it by then
		conn.Close()
	}
	pod := n.run(n.pod())
	n.exited(n.begin(pod, n.script("true")))
	n.connect("10-after", &plugin{})
	if got := n.pluginState(); len(got.Plugins) != 1 {
		t.Errorf("status says %+v", got)
	}
}

// TestPluginThatFloods asks for more than can be done at a time: some of it is
// done, the rest refused, and others get their turn.
func TestPluginThatFloods(t *testing.T) {
	n := newNode(t).withPlugins()
	pod := n.run(n.pod())
	id := n.begin(pod, n.script("sleep 1000"))
	p := n.connect("10-floods", &plugin{})
	// The container's turn is taken, so that none of the updates gets on.
	n.mu.Lock()
	c := n.containers[id]
	n.mu.Unlock()
	if err := c.turn.take(context.Background()); err != nil {
		t.Fatal(err)
	}
	const calls = 40
	results := make(chan error, calls)
	for range calls {
		go func() {
			u := &api.ContainerUpdate{}
			u.SetContainerId(id)
			u.SetLinuxCPUShares(200)
			_, err := p.stub.UpdateContainers([]*api.ContainerUpdate{u})
			results <- err
		}()
	}
	refused := 0
	for range calls - 8 {
		if err := <-results; status.Code(err) == codes.ResourceExhausted {
			refused++
		}
	}
	c.turn.give()
	for range 8 {
		if err := <-results; err != nil {
			t.Errorf("an update that was taken failed: %v", err)
		}
	}
	if refused != calls-8 {
		t.Errorf("%d of %d updates were refused", refused, calls)
	}
	if got := n.status(id).Resources.Linux.CpuShares; got != 200 {
		t.Errorf("the container has %d shares", got)
	}
}

// TestPluginSocketIsNobodyElses is about who may connect, and about a socket
// that another runtime has.
func TestPluginSocketIsNobodyElses(t *testing.T) {
	n := newNode(t).withPlugins()
	info, err := os.Stat(n.cfg.Settings.NRI.Socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v (%v)", info.Mode(), err)
	}
	taken := filepath.Join(t.TempDir(), "nri.sock")
	l, err := net.Listen("unix", taken)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	open := t.TempDir()
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	for socket, want := range map[string]string{
		taken:                            "in use by another runtime",
		filepath.Join(open, "nri.sock"):  "writable by others",
		"/proc/podstead-none/x/nri.sock": "/proc/podstead-none",
	} {
		n.cfg.Settings.NRI.Socket = socket
		n.restart()
		if got := n.pluginState().Problem; !strings.Contains(got, want) {
			t.Errorf("%s: status says %q", socket, got)
		}
		n.exited(n.begin(n.run(n.pod()), n.script("true")))
	}
}

// runInstalledPlugin is this program as a plugin that the engine starts.
func runInstalledPlugin() {
	p := &plugin{synchronize: func([]*api.PodSandbox, []*api.Container) []*api.ContainerUpdate { return nil }}
	p.create = func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.AddEnv("CONFIGURED", p.config)
		return a, nil, nil
	}
	s, err := stub.New(p, stub.WithOnClose(func() {}))
	if err == nil {
		err = s.Run(context.Background())
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		os.Exit(1)
	}
}

// installPlugin makes this program a plugin that is started with the engine.
func (n *node) installPlugin() {
	n.t.Helper()
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	programs, config := n.t.TempDir(), n.t.TempDir()
	if err := os.Symlink(self, filepath.Join(programs, "05-installed")); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(config, "installed.conf"), []byte("as wanted"), 0o644); err != nil {
		n.t.Fatal(err)
	}
	n.cfg.Settings.NRI.PluginDir, n.cfg.Settings.NRI.ConfigDir = programs, config
}

func TestInstalledPlugin(t *testing.T) {
	n := newNode(t)
	n.installPlugin()
	n.withPlugins()
	for range 2 { // it is started anew with the engine
		id := n.begin(n.run(n.pod()), n.script("sleep 1000"))
		if got := string(n.sh(id, "echo $CONFIGURED").Stdout); got != "as wanted\n" {
			t.Errorf("the plugin's adjustment is %q", got)
		}
		n.restart()
	}
	// A name that is no plugin's spoils the directory, not the socket.
	if err := os.WriteFile(filepath.Join(n.cfg.Settings.NRI.PluginDir, "README"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	n.restart()
	if st := n.pluginState(); !strings.Contains(st.Problem, "README") || len(st.Plugins) != 0 {
		t.Errorf("status says %+v", st)
	}
	n.connect("10-other", &plugin{})
}

func TestRequiredPlugin(t *testing.T) {
	n := newNode(t)
	n.cfg.Settings.NRI.RequiredPlugins, n.cfg.Settings.NRI.RequiredUnless = []string{"guard"}, "test.podstead/unguarded"
	n.withPlugins()
	pod := n.run(n.pod())
	create := func(change ...func(*runtimeapi.ContainerConfig)) error {
		_, err := n.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: n.script("true", change...)})
		return err
	}
	if err := create(); err == nil || !strings.Contains(err.Error(), "guard") {
		t.Errorf("without the required plugin: %v", err)
	}
	n.connect("10-guard", &plugin{})
	if err := create(); err != nil {
		t.Errorf("with the required plugin: %v", err)
	}
}

// TestPluginsComeAndGoMeanwhile has plugins connect and leave while containers
// are made, started and removed.
func TestPluginsComeAndGoMeanwhile(t *testing.T) {
	n := newNode(t).withPlugins()
	var wg sync.WaitGroup
	for range 3 {
		pod := n.run(n.pod())
		wg.Go(func() {
			for range 4 {
				n.exited(n.begin(pod, n.script("true")))
			}
		})
	}
	for range 5 {
		p := n.connect("10-brief", &plugin{})
		p.stub.Stop()
		<-p.lost
	}
	wg.Wait()
}
