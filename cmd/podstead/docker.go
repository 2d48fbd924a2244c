package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/pflag"

	"podstead/cgroup"
	"podstead/cri/server"
	"podstead/engine/config"
	"podstead/engine/docker"
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
}

func (d *dockerOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&d.backend, "backend", backendEngine, "`WHAT` runs the containers: "+backendEngine+", or "+backendDocker+" for a Docker Engine")
	f.StringVar(&d.endpoint, "docker-endpoint", "unix:///var/run/docker.sock", "`unix:///…` of the Docker Engine, which must be on this machine")
}

// notForDocker are the flags that say how our own engine works.
var notForDocker = []string{"config", "certs-dir", "cdi-dir", "pod-cidr", "log-max-bytes", "log-max-files"}

// check refuses flags that would have no effect.
func (d *dockerOptions) check(f *pflag.FlagSet) error {
	switch d.backend {
	case backendEngine:
		if f.Changed("docker-endpoint") {
			return errors.New("--docker-endpoint: needs --backend docker")
		}
	case backendDocker:
		for _, name := range notForDocker {
			if f.Changed(name) {
				return fmt.Errorf("--%s: has no effect with --backend docker", name)
			}
		}
	default:
		return fmt.Errorf("--backend: %q is neither %s nor %s", d.backend, backendEngine, backendDocker)
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
		Endpoint: d.endpoint, StateDir: filepath.Join(n.stateDir, "docker"),
		Network: pods, Cgroups: cgroups, Log: log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rt.Close()) }()
	log.Info("serving", "cri", n.criSocket(), "docker", d.endpoint)
	return serveUntil(ctx, server.New(server.Config{Runtime: rt, Log: log}), socket)
}
