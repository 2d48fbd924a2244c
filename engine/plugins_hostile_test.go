package engine

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

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

// TestPluginTimeouts: the patience with plugins is as configured.
func TestPluginTimeouts(t *testing.T) {
	n := newNode(t)
	slow := func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		time.Sleep(2500 * time.Millisecond) // longer than the default, whatever the machine does
		return nil, nil, nil
	}
	n.cfg.Settings.NRI.RequestTimeout.Duration = patience
	n.withPlugins()
	p := n.connect("10-slow", &plugin{create: slow})
	pod := n.run(n.pod())
	n.exited(n.begin(pod, n.script("true")))
	if told := strings.Join(p.told(), ","); !strings.Contains(told, "RemoveContainer") && !strings.Contains(told, "StartContainer") {
		t.Errorf("the slow plugin was told %s", told)
	}
	hang := make(chan struct{})
	defer close(hang)
	for wait := 50 * time.Millisecond; ; wait *= 4 { // until there is time enough to be let in
		n.cfg.Settings.NRI.RequestTimeout.Duration, n.cfg.Settings.NRI.RegistrationTimeout.Duration = wait, wait
		n.restart()
		hangs := &plugin{create: func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			<-hang
			return nil, nil, nil
		}}
		err := n.tryConnect("10-hangs", hangs)
		if err == nil {
			break
		}
		if t.Logf("with %v: %v", wait, err); wait > patience {
			t.FailNow()
		}
	}
	<-p.lost
	began := time.Now()
	n.exited(n.begin(pod, n.script("true")))
	n.gone("10-hangs")
	t.Logf("a plugin that hangs was dropped after %v at most", time.Since(began))
	conn, err := net.Dial("unix", n.cfg.Settings.NRI.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Errorf("who does not register is not let go: %v", err)
	}
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
		a.AddMount(&api.Mount{Destination: "/by-plugin", Type: "bind", Source: filepath.Dir(p.config), Options: []string{"rbind", "ro"}})
		a.AddHooks(&api.Hooks{
			StartContainer: []*api.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo start > /started"}}},
			Poststop:       []*api.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo end >> " + p.config}}},
		})
		return a, nil, nil
	}
	p.refuse = func(string) error { return os.WriteFile(p.config+".told", []byte(strings.Join(p.told(), "\n")), 0o644) }
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
	if err := os.WriteFile(filepath.Join(config, "installed.conf"), []byte(filepath.Join(config, "noted")), 0o644); err != nil {
		n.t.Fatal(err)
	}
	n.cfg.Settings.NRI.PluginDir, n.cfg.Settings.NRI.ConfigDir = programs, config
}

// TestInstalledPlugin runs a plugin that is a program of its own, as they are
// installed: it hears of all that happens, and what it says of a container is done.
func TestInstalledPlugin(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	n.installPlugin()
	n.withPlugins()
	noted := filepath.Join(n.cfg.Settings.NRI.ConfigDir, "noted")
	for range 2 { // it is started anew with the engine
		os.Remove(noted)
		pod, script := n.run(n.pod()), n.script(forever)
		rec := n.allSandboxes()[0].record()
		name := rec.config().Metadata.Name
		id := n.ready(n.begin(pod, script))
		if got := string(n.sh(id, "echo $CONFIGURED; ls /by-plugin; cat /started").Stdout); got != noted+"\ninstalled.conf\nnoted.told\nstart\n" {
			t.Errorf("the plugin's adjustments give %q", got)
		}
		if _, err := n.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 512}}); err != nil {
			t.Fatal(err)
		}
		if _, err := n.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 77}}); err != nil {
			t.Fatal(err)
		}
		if _, err := n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 60}); err != nil {
			t.Fatal(err)
		}
		if _, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(noted); err != nil || string(b) != "end\n" {
			t.Errorf("its hook of the end wrote %q, %v", b, err)
		}
		c := script.Metadata.Name
		want := strings.Join([]string{
			"RunPodSandbox " + name, "CreateContainer " + c, "PostCreateContainer " + c, "StartContainer " + c, "PostStartContainer " + c + " CONTAINER_RUNNING",
			"UpdateContainer " + c, "PostUpdateContainer " + c, "UpdatePodSandbox " + name + " 77", "PostUpdatePodSandbox " + name,
			"StopContainer " + c + " 0", "StopPodSandbox " + name, "RemoveContainer " + c, "RemovePodSandbox " + name,
		}, "\n")
		if got, err := os.ReadFile(noted + ".told"); err != nil || string(got) != want {
			t.Errorf("the plugin was told\n%s\nwant\n%s (%v)", got, want, err)
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
