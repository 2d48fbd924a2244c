package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"podstead/agent"
	"podstead/agent/kubeletconfig"
	"podstead/cgroup"
	"podstead/engine/config"
	"podstead/supervisor"
	"podstead/sys"
)

// readKubelet reads the KubeletConfiguration that the flags name, if they do,
// and puts what it says where flags have said nothing. Whoever starts a node
// hears of a bad one; a node that its supervisor starts again goes on with the
// last good one, of which a copy is in the run directory.
func (n *nodeOptions) readKubelet(log *slog.Logger) error {
	n.policy = agent.DefaultPolicy()
	if n.kubeletConfig == "" && n.kubeletDropIns == "" {
		return nil
	}
	good := filepath.Join(n.runDir, "kubelet.yaml")
	again := os.Getenv(supervisor.SupervisedEnv) != ""
	c, warnings, err := kubeletconfig.Read(n.kubeletConfig, n.kubeletDropIns)
	if err == nil {
		n.policy, err = kubeletconfig.Policy(c)
	}
	if err == nil {
		n.logLimits.bytes, n.logLimits.files, err = kubeletconfig.LogLimits(c)
	}
	if err == nil {
		n.tracing, err = kubeletconfig.Tracing(c)
	}
	if err == nil {
		n.manifestURL, err = kubeletconfig.ManifestURL(c)
	}
	if err == nil {
		n.self, err = readSelf(c)
	}
	var notes []string
	if err == nil {
		n.kubeletAPI, notes, err = kubeletconfig.Server(c)
	}
	switch {
	case err != nil && !again:
		return fmt.Errorf("kubelet configuration: %w", err)
	case err != nil:
		log.Error("the kubelet configuration is bad, the last good one stays in force", "error", err)
		old, _, oldErr := kubeletconfig.Read(good, "")
		if oldErr == nil {
			n.policy, oldErr = kubeletconfig.Policy(old)
		}
		if oldErr == nil {
			n.kubeletAPI, _, oldErr = kubeletconfig.Server(old)
		}
		if oldErr == nil {
			n.tracing, oldErr = kubeletconfig.Tracing(old)
		}
		if oldErr == nil {
			n.self, oldErr = readSelf(old)
		}
		if oldErr == nil {
			n.manifestURL, oldErr = kubeletconfig.ManifestURL(old)
		}
		if oldErr != nil {
			return fmt.Errorf("kubelet configuration: %w", errors.Join(err, oldErr))
		}
		c = old
	case !again:
		for _, w := range append(warnings, notes...) {
			log.Warn(w, "file", n.kubeletConfig)
		}
		data, err := yaml.Marshal(c)
		if err == nil {
			err = os.MkdirAll(n.runDir, 0o700)
		}
		if err == nil {
			err = sys.WriteFileAtomic(good, data, 0o600, false)
		}
		if err != nil {
			return err
		}
	}
	if n.kubeletAPI != nil {
		n.kubeletAPI.Lenient = again
		n.kubeletAPI.SetVerbosity = n.setVerbosity
		n.kubeletAPI.Flags = map[string]string{}
		n.flags.VisitAll(func(f *pflag.Flag) { n.kubeletAPI.Flags[f.Name] = f.Value.String() })
	}
	if n.manifests == "" {
		n.manifests = c.StaticPodPath
	}
	if n.runtimeEndpoint == "" {
		n.runtimeEndpoint = c.ContainerRuntimeEndpoint
	}
	if n.imageEndpoint = c.ImageServiceEndpoint; n.imageEndpoint != "" && n.runtimeEndpoint == "" {
		log.Warn("imageServiceEndpoint has no effect: the built-in engine has images of its own", "file", n.kubeletConfig)
		n.imageEndpoint = ""
	}
	n.podLogs = c.PodLogsDir
	n.kubeCgroups = c.CgroupRoot
	if again {
		return nil
	}
	hierarchy, err := cgroup.Detect()
	if err != nil {
		return err
	}
	return kubeletconfig.CheckHost(c, hierarchy.Unified(), "/proc/swaps", "/proc/sys")
}

// readProviders reads the credential providers. A node that its supervisor
// starts again goes on without those that have become bad meanwhile.
func (n *nodeOptions) readProviders(log *slog.Logger) (err error) {
	if n.providerConfig == "" {
		return nil
	}
	n.providers, err = agent.ReadCredentialProviders(n.providerConfig, n.providerBin)
	if err != nil && os.Getenv(supervisor.SupervisedEnv) != "" {
		log.Error("images are pulled without credential providers", "error", err)
		return nil
	}
	return err
}

// dockerConfigs are where the node's own registry credentials may be.
func (n *nodeOptions) dockerConfigs() []string {
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/root" // a service has no HOME
	}
	return []string{filepath.Join(n.stateDir, "config.json"), filepath.Join(home, ".docker", "config.json")}
}

// limitLogs puts the kubelet's bounds over those of the engine's file, unless
// flags have set them.
func (n *nodeOptions) limitLogs(c *config.Config) {
	if n.logLimits.bytes > 0 && !n.flags.Changed("log-max-bytes") {
		c.Logs.MaxBytes = config.Bytes{N: n.logLimits.bytes}
	}
	if n.logLimits.files > 0 && !n.flags.Changed("log-max-files") {
		c.Logs.MaxFiles = n.logLimits.files
	}
}
