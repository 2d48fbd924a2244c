package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"podstead/cgroup"
	"podstead/cri/server"
	"podstead/engine/config"
	"podstead/engine/docker"
	"podstead/network"
)

// The runtimes that can be behind the CRI socket.
const (
	backendEngine = "podstead"
	backendDocker = "docker"
)

// dockerOptions are the flags of another runtime than our own.
type dockerOptions struct {
	backend  string
	endpoint string
	network  string
	// pullTimeout ends a pull without progress.
	pullTimeout time.Duration
}

func (d *dockerOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&d.backend, "backend", backendEngine, "`WHAT` runs the containers: "+backendEngine+", or "+backendDocker+" for a Docker Engine")
	f.StringVar(&d.endpoint, "docker-endpoint", "unix:///var/run/docker.sock", "`unix:///…` of the Docker Engine, which must be on this machine")
	f.StringVar(&d.network, "docker-network", string(docker.ConnectAuto), "`WHO` connects pods on a Docker Engine: "+
		"docker (its bridge), cni (plugins, and no pods without their configuration), podstead (plugins or our own bridge), or auto (plugins or Docker's bridge)")
	f.DurationVar(&d.pullTimeout, "docker-pull-timeout", 5*time.Minute, "`TIME` without progress after which a pull by Docker is given up")
}

// forDocker are the flags that our own engine has no use for.
var forDocker = []string{"docker-endpoint", "docker-network", "docker-pull-timeout"}

// notForDocker are the flags that say how our own engine works.
var notForDocker = []string{"config", "certs-dir", "log-max-bytes", "log-max-files"}

// check refuses flags that would have no effect.
func (d *dockerOptions) check(f *pflag.FlagSet) error {
	switch d.backend {
	case backendEngine:
		for _, name := range forDocker {
			if f.Changed(name) {
				return fmt.Errorf("--%s: needs --backend docker", name)
			}
		}
	case backendDocker:
		if d.pullTimeout <= 0 {
			return fmt.Errorf("--docker-pull-timeout: %v is not positive", d.pullTimeout)
		}
		for _, name := range notForDocker {
			if f.Changed(name) {
				return fmt.Errorf("--%s: has no effect with --backend docker", name)
			}
		}
		if f.Changed("pod-cidr") && d.network != string(docker.ConnectPodstead) {
			return fmt.Errorf("--pod-cidr: has no effect without --docker-network %s", docker.ConnectPodstead)
		}
	default:
		return fmt.Errorf("--backend: %q is neither %s nor %s", d.backend, backendEngine, backendDocker)
	}
	return nil
}

// tidyNetwork removes our bridge and firewall table if no pod has them.
func (n *nodeOptions) tidyNetwork(ctx context.Context, pods *network.Network) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if pods.Idle() {
		return pods.Destroy(ctx)
	}
	return nil
}

// serveDocker serves the CRI on a Docker Engine until ctx ends. Docker holds
// the containers and what they write, so that no supervisor is needed: whoever
// starts this program starts it again.
func (n *nodeOptions) serveDocker(ctx context.Context, d dockerOptions) (err error) {
	if err := n.prepare(); err != nil {
		return err
	}
	log, err := n.logger()
	if err != nil {
		return err
	}
	cgroups, err := cgroup.Detect()
	if err != nil {
		return err
	}
	settings := config.Default()
	n.override(&settings)
	settings.Network.ReadySlots = 0 // Docker makes the namespaces
	pods, err := n.openNetwork(settings.Network, log)
	if err != nil {
		return err
	}
	defer pods.Close()
	socket, err := listenUnix(n.criSocket())
	if err != nil {
		return err
	}
	defer socket.Close()
	rt, err := docker.New(ctx, docker.Config{
		Endpoint: d.endpoint, StateDir: filepath.Join(n.stateDir, "docker"), CDIDirs: settings.CDI.Dirs, PullTimeout: d.pullTimeout,
		Connect: docker.Connect(d.network), Network: pods, Cgroups: cgroups, Log: log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rt.Close(), n.tidyNetwork(ctx, pods)) }()
	log.Info("serving", "cri", n.criSocket(), "docker", d.endpoint)
	tellManager(ctx, log, answers(rt))
	return serveUntil(ctx, server.New(server.Config{Runtime: rt, Log: log}), socket)
}
