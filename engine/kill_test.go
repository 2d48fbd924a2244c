package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cgroup"
	"podstead/engine/config"
	"podstead/image"
	"podstead/network"
	"podstead/supervisor"
	testhost "podstead/test/host"
)

// parts says where a node's parts are, so that another process can have them.
type parts struct {
	Engine, EngineRun, Images, Network, NetworkRun, Supervisor, Cgroup string
	Handlers                                                           []config.Handler
}

const partsVariable = "PODSTEAD_TEST_ENGINE"

// open makes the parts of a configuration.
func (p parts) open(log *slog.Logger, client *supervisor.Client) (Config, error) {
	h, err := cgroup.Detect()
	if err != nil {
		return Config{}, err
	}
	images, err := image.Open(image.Config{Dir: p.Images, Log: log})
	if err != nil {
		return Config{}, err
	}
	net, err := network.New(network.Config{
		Name: "ptest0", StateDir: p.Network, RunDir: p.NetworkRun,
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("fd00:88::/64")}, Slots: 4, Log: log,
	})
	return Config{
		StateDir: p.Engine, RunDir: p.EngineRun, ImageDir: p.Images, Images: images, Network: net,
		Cgroups: h, Supervisor: client, Settings: settingsWith(p.Handlers), CgroupParent: p.Cgroup, Version: "1.2.3", Log: log,
	}, err
}

// TestEngineToBeKilled is no test: it is the engine that TestKilledAnywhere
// kills. It runs pods up and down as fast as it can.
func TestEngineToBeKilled(t *testing.T) {
	var p parts
	if json.Unmarshal([]byte(os.Getenv(partsVariable)), &p) != nil {
		t.Skip("runs as a process of its own")
	}
	ctx := context.Background()
	client, err := supervisor.Connect(ctx, p.Supervisor)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := p.open(slog.New(slog.DiscardHandler), client)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, logs: filepath.Join(p.EngineRun, "logs")}
	n.Engine, err = New(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("\nready")
	for {
		n.upAndDown(p.Handlers)
	}
}

// upAndDown runs a pod with a container and takes it away, and says how long that
// took.
func (n *node) upAndDown(handlers []config.Handler) time.Duration {
	n.t.Helper()
	start := time.Now()
	config := n.pod(func(c *runtimeapi.PodSandboxConfig) {
		// Names must not repeat those of the last life.
		c.Metadata.Uid = newID()
		switch kind := rand.IntN(3); {
		case kind == 0:
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		case kind == 1 && len(handlers) == 0:
			m := []*runtimeapi.IDMapping{{HostId: 200000, Length: 65536}}
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Uids: m, Gids: m}
		}
	})
	pod := n.run(config)
	script := n.script("echo x >/file; sleep 1000")
	script.Linux.SecurityContext.NamespaceOptions = config.Linux.SecurityContext.NamespaceOptions
	script.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", Image: &runtimeapi.ImageSpec{Image: testImage}, Readonly: true}}
	n.sh(n.begin(pod, script), "true")
	if _, err := n.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		n.t.Fatal(err)
	}
	return time.Since(start)
}

// TestKilledAnywhere kills an engine at any moment, many times. Each time the
// next one starts, knows what there is, and can take it away; in the end
// nothing is left of all the lives.
func TestKilledAnywhere(t *testing.T) { onHandlers(t, testKilledAnywhere) }

func testKilledAnywhere(t *testing.T, handlers ...config.Handler) {
	lives := 40
	if len(handlers) > 0 { // it takes longer, and there are fewer ways
		lives = 15
	}
	if testing.Short() {
		lives = 3
	}
	newNode(t, handlers...).killEngines(testhost.Rounds(lives), func() {})
}

// killEngines kills so many engines on the node's state at any moment, and has
// the node's own look at what each left.
func (n *node) killEngines(lives int, look func()) {
	n.t.Helper()
	handlers := n.cfg.Settings.Handlers
	p := parts{
		Engine: n.cfg.StateDir, EngineRun: n.cfg.RunDir, Images: n.cfg.ImageDir,
		Network: n.networkState, NetworkRun: n.networkRun, Supervisor: n.supervisorDir, Cgroup: testhost.Cgroup(), Handlers: handlers,
	}
	described, err := json.Marshal(p)
	if err != nil {
		n.t.Fatal(err)
	}
	longest := n.upAndDown(handlers) * 3 / 2
	for life := range lives {
		if err := n.Engine.Close(); err != nil {
			n.t.Fatal(err)
		}
		n.images.Close()
		n.net.Close()
		n.liveAndDie(string(described), rand.N(longest))
		cfg, err := p.open(n.cfg.Log, n.client)
		if err != nil {
			n.t.Fatal(err)
		}
		n.cfg, n.images, n.net = cfg, cfg.Images, cfg.Network
		n.start()
		look()
		for _, s := range n.allSandboxes() {
			// Every second time the next engine is killed with it.
			if life%2 == 0 {
				if _, err := n.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.id}); err != nil {
					n.t.Fatalf("life %d: %v", life, err)
				}
			}
		}
	}
}

// liveAndDie runs an engine in another process and kills it.
func (n *node) liveAndDie(described string, after time.Duration) {
	n.t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestEngineToBeKilled$")
	cmd.Env = append(os.Environ(), partsVariable+"="+described)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	ready := false
	for !ready && lines.Scan() {
		ready = lines.Text() == "ready"
		if !ready && lines.Text() != "" {
			n.t.Log(lines.Text())
		}
	}
	if !ready {
		n.t.Error("the engine to be killed did not start")
	}
	timer := time.NewTimer(after)
	<-timer.C
	cmd.Process.Kill()
	cmd.Wait()
}
