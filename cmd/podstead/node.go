package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent"
	"podstead/cgroup"
	"podstead/cgroup/systemd"
	"podstead/cri"
	"podstead/cri/remote"
	"podstead/cri/server"
	"podstead/cri/tracing"
	"podstead/engine"
	"podstead/engine/config"
	"podstead/image"
	"podstead/network"
	"podstead/oci/launch"
	"podstead/supervisor"
)

// nodeOptions are the flags of the commands that serve.
type nodeOptions struct {
	*options
	manifests       string
	nodeName        string
	runtimeEndpoint string
	imageEndpoint   string // "" for the same
	config          string
	rootDir         string
	kubeletConfig   string
	kubeletDropIns  string
	kubeletAPI      *agent.KubeletAPI
	providerConfig  string
	providerBin     string
	providers       []*agent.CredentialProvider
	tracing         *tracing.Settings // of the agent; nil: none. This
	policy          agent.Policy      // and what follows: what the KubeletConfiguration says
	self            self
	podLogs         string
	manifestURL     agent.ManifestURL
	kubeCgroups     string // the kubepods tree's parent, "" for the instance's own group
	logLimits       struct {
		bytes int64
		files int
	}
	set         config.Config // what flags say of it
	logMaxBytes int64
	flags       *pflag.FlagSet
	withAgent   bool
}

func nodeCommand(opt *options) *cobra.Command {
	n := nodeOptions{options: opt, withAgent: true}
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Run the pods of a manifest directory, and serve their API on a unix socket",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return n.serve(cmd.Context()) },
	}
	host, _ := os.Hostname()
	f := cmd.Flags()
	f.StringVar(&n.manifests, "manifests", "", "`DIR` of Pod, ConfigMap and Secret manifests to keep running")
	f.StringVar(&n.nodeName, "node-name", host, "`NAME` of this node in pod status and the downward API")
	f.StringVar(&n.runtimeEndpoint, "runtime-endpoint", "", "run pods on the CRI runtime at this `unix:///…` instead of the built-in engine")
	f.StringVar(&n.rootDir, "root-dir", "", "`DIR` where plugins look for a kubelet (/var/lib/kubelet): serve device plugins and PodResources there")
	f.StringVar(&n.kubeletConfig, "config", "", "a KubeletConfiguration `FILE`; fields without effect are warned about")
	f.StringVar(&n.kubeletDropIns, "config-dir", "", "`DIR` of *.conf files that are merged over it, in the order of their names")
	f.StringVar(&n.providerConfig, "image-credential-provider-config", "", "a CredentialProviderConfig `FILE`, or a directory of them")
	f.StringVar(&n.providerBin, "image-credential-provider-bin-dir", "", "`DIR` of the credential providers' programs")
	cmd.MarkFlagsRequiredTogether("image-credential-provider-config", "image-credential-provider-bin-dir")
	f.StringVar(&n.config, "engine-config", "", "the engine's configuration `FILE`; "+config.DefaultPath+" if that is there")
	n.engineFlags(cmd)
	return cmd
}

func criCommand(opt *options) *cobra.Command {
	n := nodeOptions{options: opt}
	var d dockerOptions
	cmd := &cobra.Command{
		Use:   "cri",
		Short: "Serve the Container Runtime Interface v1 on RUN/cri.sock",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := d.check(cmd.Flags()); err != nil {
				return err
			}
			if d.backend == backendDocker {
				return n.serveDocker(cmd.Context(), d)
			}
			return n.serve(cmd.Context())
		},
	}
	d.flags(cmd.Flags())
	cmd.Flags().StringVar(&n.config, "config", "", "the configuration `FILE`; "+config.DefaultPath+" if that is there")
	n.engineFlags(cmd)
	return cmd
}

// engineFlags are settings of the configuration file that can be given on the
// command line, too, which then counts.
func (n *nodeOptions) engineFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	n.flags = f
	d := config.Default()
	f.StringVar(&n.set.Network.CNIConfDir, "cni-conf-dir", d.Network.CNIConfDir, "`DIR` whose first CNI configuration, if there is one, replaces the built-in network")
	f.StringSliceVar(&n.set.Network.CNIBinDirs, "cni-bin-dir", d.Network.CNIBinDirs, "`DIRS` of CNI plugins")
	f.StringSliceVar(&n.set.Network.CNINetworks, "cni-network", d.Network.CNINetworks, "`NAMES` of further networks in the CNI configuration directory that each pod is connected to")
	f.StringVar(&n.set.Images.CertsDir, "certs-dir", d.Images.CertsDir, "`DIR` of registry mirrors and certificates: HOST/hosts.toml")
	f.StringSliceVar(&n.set.CDI.Dirs, "cdi-dir", d.CDI.Dirs, "`DIRS` of the files that describe CDI devices; the later ones win")
	f.StringVar(&n.set.Network.PodCIDR, "pod-cidr", d.Network.PodCIDR, "`CIDRS` of the built-in network, one of IPv4, one of IPv6 or both, separated by a comma; free private ones are chosen otherwise")
	f.Int64Var(&n.logMaxBytes, "log-max-bytes", d.Logs.MaxBytes.N, "`BYTES` after which a container's log file is rotated")
	f.IntVar(&n.set.Logs.MaxFiles, "log-max-files", d.Logs.MaxFiles, "`NUMBER` of log files kept per container")
}

// override puts the flags that were given over what the file says.
func (n *nodeOptions) override(c *config.Config) {
	n.limitLogs(c)
	for flag, set := range map[string]func(){
		"cni-conf-dir":  func() { c.Network.CNIConfDir = n.set.Network.CNIConfDir },
		"cni-bin-dir":   func() { c.Network.CNIBinDirs = n.set.Network.CNIBinDirs },
		"cni-network":   func() { c.Network.CNINetworks = n.set.Network.CNINetworks },
		"cdi-dir":       func() { c.CDI.Dirs = n.set.CDI.Dirs },
		"certs-dir":     func() { c.Images.CertsDir = n.set.Images.CertsDir },
		"pod-cidr":      func() { c.Network.PodCIDR = n.set.Network.PodCIDR },
		"log-max-bytes": func() { c.Logs.MaxBytes = config.Bytes{N: n.logMaxBytes} },
		"log-max-files": func() { c.Logs.MaxFiles = n.set.Logs.MaxFiles },
	} {
		if n.flags.Changed(flag) {
			set()
		}
	}
}

// serve runs below the supervisor: the first time this program turns into the
// supervisor's front, which has it started again with its final parent.
func (n *nodeOptions) serve(ctx context.Context) error {
	if err := n.prepare(); err != nil {
		return err
	}
	log, err := n.logger()
	if err != nil {
		return err
	}
	if err := n.readKubelet(log); err != nil {
		return err
	}
	log = n.logging(log, n.flags.Changed("log-level"))
	if err := n.readProviders(log); err != nil {
		return err
	}
	file, err := openConfig(n.config, n.runDir, n.override)
	if err != nil {
		return err
	}
	if n.runtimeEndpoint != "" && n.config != "" {
		return errors.New("--engine-config: with --runtime-endpoint there is no engine to be configured")
	}
	if n.runtimeEndpoint == "" {
		// Whoever starts a node hears of a bad file; an engine that is started
		// again goes on with the last good one.
		if os.Getenv(supervisor.SupervisedEnv) == "" {
			if _, err := file.read(); err != nil {
				return err
			}
		}
		if err := supervisor.Front(n.runDir, os.Args); err != nil {
			return err
		}
	}
	n.self.apply(log)
	// The live heap is a few MiB: collecting it twice as often costs nothing
	// that could be noticed and keeps the promise of a small node.
	debug.SetGCPercent(50)
	return n.run(ctx, file, log)
}

// run builds every box, top to bottom, and serves until ctx ends.
func (n *nodeOptions) run(ctx context.Context, file *configFile, log *slog.Logger) (err error) {
	cgroups, err := cgroup.Detect()
	if err != nil {
		return err
	}
	if n.runtimeEndpoint != "" {
		return n.runOnEndpoint(ctx, cgroups, log)
	}
	hup, stop := hangups()
	defer stop()
	settings, bad, err := file.load()
	if err != nil {
		return err
	}
	if settings.CgroupDriver == config.Systemd {
		manager := systemd.New(systemd.Options{Park: launch.Park})
		if err := manager.Check(); err != nil {
			return fmt.Errorf("cgroupDriver: %w", err)
		}
		defer manager.Close()
		cgroups = cgroups.WithDriver(manager)
	}
	sup, err := supervisor.Ensure(ctx, n.runDir)
	if err != nil {
		return fmt.Errorf("connect to the supervisor: %w", err)
	}
	defer sup.Close()
	imageDir := filepath.Join(n.stateDir, "images")
	images, err := image.Open(image.Config{
		Dir: imageDir, CertsDir: settings.Images.CertsDir, Log: log,
		ParallelLayers: settings.Images.ParallelLayers, StallTimeout: settings.Images.StallTimeout.Duration,
	})
	if err != nil {
		return fmt.Errorf("open the image store: %w", err)
	}
	defer images.Close()
	pods, err := n.openNetwork(settings.Network, log)
	if err != nil {
		return err
	}
	defer pods.Close()
	eng, err := engine.New(ctx, engine.Config{
		StateDir: n.stateDir, RunDir: n.runDir, ImageDir: imageDir, CgroupParent: n.cgroupRoot(), Version: version,
		Images: images, Network: pods, Cgroups: cgroups, Supervisor: sup,
		Settings: n.withPlugins(settings, log), Log: log,
	})
	if err != nil {
		return fmt.Errorf("start the engine: %w", err)
	}
	defer eng.Close()
	defer func() { err = errors.Join(err, n.tidy(ctx, eng, pods, cgroups)) }()

	defer file.follow(hup, settings, bad, eng, log)()

	criSocket, err := sup.Listen(ctx, "cri", "unix", n.criSocket())
	if err != nil {
		return fmt.Errorf("listen on %s: %w", n.criSocket(), err)
	}
	calls, stopCalls, err := n.startTracing(ctx, settings.TracingSettings(), "podstead-cri", log)
	if err != nil {
		return err
	}
	defer stopCalls()
	srv := server.New(server.Config{Runtime: eng, Tracing: calls, Log: log})
	serve := func(ctx context.Context) error { return serveUntil(ctx, srv, criSocket) }
	if !n.withAgent {
		log.Info("serving", "cri", n.criSocket())
		tellManager(ctx, log, answers(eng))
		return serve(ctx)
	}
	agentSocket, err := sup.Listen(ctx, "agent", "unix", n.agentSocket())
	if err != nil {
		return fmt.Errorf("listen on %s: %w", n.agentSocket(), err)
	}
	spans, stopSpans, err := n.startTracing(ctx, n.tracing, "podstead-node", log)
	if err != nil {
		return err
	}
	defer stopSpans()
	cfg := n.agentConfig(eng, cgroups, agentSocket, log)
	cfg.Images, cfg.Tracing = archives{images}, spans
	node, err := agent.New(cfg)
	if err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	log.Info("serving", "cri", n.criSocket(), "agent", n.agentSocket(), "manifests", n.manifests)
	group, ctx := errgroup.WithContext(ctx)
	tellManager(ctx, log, func(ctx context.Context) error {
		return cmp.Or(answers(eng)(ctx), n.agentAnswers(ctx))
	})
	group.Go(func() error { return serve(ctx) })
	group.Go(func() error { return node.Run(ctx) })
	return group.Wait()
}

// runOnEndpoint runs the agent alone, on somebody else's runtime.
func (n *nodeOptions) runOnEndpoint(ctx context.Context, cgroups *cgroup.Hierarchy, log *slog.Logger) error {
	rt, err := remote.NewWith(n.runtimeEndpoint, remote.Settings{Images: n.imageEndpoint, Limit: n.policy.RuntimeTimeout})
	if err != nil {
		return err
	}
	defer rt.Close()
	socket, err := listenUnix(n.agentSocket())
	if err != nil {
		return err
	}
	spans, stopSpans, err := n.startTracing(ctx, n.tracing, "podstead-node", log)
	if err != nil {
		return err
	}
	defer stopSpans()
	cfg := n.agentConfig(rt, cgroups, socket, log)
	cfg.Tracing = spans
	node, err := agent.New(cfg)
	if err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	log.Info("serving", "agent", n.agentSocket(), "runtime", n.runtimeEndpoint, "manifests", n.manifests)
	tellManager(ctx, log, n.agentAnswers)
	return errors.Join(node.Run(ctx), n.tidyCgroups(ctx, cgroups))
}

func (n *nodeOptions) agentConfig(rt cri.Runtime, cgroups *cgroup.Hierarchy, socket net.Listener, log *slog.Logger) agent.Config {
	return agent.Config{
		Runtime: rt, ManifestDir: n.manifests, ManifestURL: n.manifestURL, NodeName: n.nodeName, Version: version,
		StateDir: filepath.Join(n.stateDir, "agent"), RunDir: n.runDir, PodLogsDir: cmp.Or(n.podLogs, n.logsDir()),
		RootDir: n.rootDir, DockerConfigs: n.dockerConfigs(), CredentialProviders: n.providers,
		Cgroups: cgroups, CgroupRoot: cmp.Or(n.kubeCgroups, n.cgroupRoot()),
		Policy: &n.policy, Kubelet: n.kubeletAPI, FileSystemUsage: []string{"/proc/self/exe", "file-system-usage"}, HostPathCheck: []string{"/proc/self/exe", "host-path-check"}, Listener: socket, Log: log,
	}
}

func (n *nodeOptions) openNetwork(c config.Network, log *slog.Logger) (*network.Network, error) {
	cfg := network.Config{
		Name: n.instance(), StateDir: filepath.Join(n.stateDir, "network"), RunDir: n.runDir,
		CNIConfDir: c.CNIConfDir, CNIBinDirs: c.CNIBinDirs, CNINetworks: c.CNINetworks, Slots: c.ReadySlots, Log: log,
	}
	var err error
	if cfg.Subnets, err = c.PodSubnets(); err != nil {
		return nil, fmt.Errorf("network.podCIDR: %w", err)
	}
	net, err := network.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("open the network: %w", err)
	}
	return net, nil
}

// tidy removes bridge, firewall table and cgroups, if no pod needs them.
func (n *nodeOptions) tidy(ctx context.Context, rt cri.Sandboxes, pods *network.Network, cgroups *cgroup.Hierarchy) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	list, err := rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(list.Items) > 0 {
		return err
	}
	return errors.Join(pods.Destroy(ctx), n.tidyCgroups(ctx, cgroups))
}

// tidyCgroups removes the instance's cgroups if no process is in them.
func (n *nodeOptions) tidyCgroups(ctx context.Context, cgroups *cgroup.Hierarchy) error {
	if cgroups.Driven() {
		return nil // slices are systemd's, and gone when they are empty
	}
	root := cgroups.Group(n.cgroupRoot())
	if procs, err := root.Procs(); err != nil || len(procs) > 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	return root.Remove(ctx)
}

// stopTimeout bounds the orderly end of each part.
const stopTimeout = 10 * time.Second

// serveUntil serves until ctx ends and then lets calls under way finish.
func serveUntil(ctx context.Context, srv *server.Server, l net.Listener) error {
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	err := srv.Shutdown(stop)
	if errors.Is(err, context.DeadlineExceeded) {
		err = nil // a stream that nobody ends is no failure
	}
	return errors.Join(err, <-done)
}

// listenUnix replaces a socket that a dead process left.
func listenUnix(path string) (net.Listener, error) {
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("%s: another process serves this socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	return net.Listen("unix", path)
}
