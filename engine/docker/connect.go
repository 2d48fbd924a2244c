package docker

import (
	"context"
	"errors"
	"fmt"
	"os"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/internal/pod"
	"podstead/network"
)

// Connect says who connects new pods.
type Connect string

const (
	// ConnectAuto is CNI plugins where there is a configuration of them, and
	// Docker's bridge elsewhere.
	ConnectAuto Connect = "auto"
	// ConnectDocker is Docker's bridge.
	ConnectDocker Connect = "docker"
	// ConnectCNI is CNI plugins; without a configuration there can be no pods.
	ConnectCNI Connect = "cni"
	// ConnectPodstead is our network: CNI plugins where there is a configuration
	// of them, and our own bridge elsewhere.
	ConnectPodstead Connect = "podstead"
)

// valid is an error if there is no such way.
func (c Connect) valid(net *network.Network) error {
	switch c {
	case ConnectAuto, ConnectDocker:
		return nil
	case ConnectCNI, ConnectPodstead:
		if net == nil {
			return fmt.Errorf("network %q: there is none", c)
		}
		return nil
	}
	return fmt.Errorf("network %q is none of %s, %s, %s and %s", c, ConnectAuto, ConnectDocker, ConnectCNI, ConnectPodstead)
}

// connects tells whether our network, and not Docker's, connects new pods.
func (c *Config) connects() bool {
	switch c.Connect {
	case ConnectDocker:
		return false
	case ConnectCNI, ConnectPodstead:
		return true
	}
	return c.Network != nil && c.Network.HasPlugins()
}

// connectable is nil when new pods can be connected.
func (c *Config) connectable() error {
	switch {
	case !c.connects():
		return nil
	case c.Connect == ConnectCNI && !c.Network.HasPlugins():
		return errors.New("there is no CNI configuration")
	}
	return c.Network.Ready()
}

// connect connects a sandbox that runs, and records its addresses last: who is
// to be connected and has none is not ready.
func (r *Runtime) connect(ctx context.Context, id string) error {
	if r.cfg.Connect == ConnectCNI && !r.cfg.Network.HasPlugins() {
		return cri.Errorf(codes.Unavailable, "connect pod sandbox %s: there is no CNI configuration", id)
	}
	p, err := r.mustPod(ctx, id)
	if err != nil {
		return err
	}
	result, err := r.cfg.Network.Setup(ctx, r.networkPod(p))
	if err != nil {
		return fmt.Errorf("connect pod sandbox %s: %w", id, err)
	}
	return r.sandboxState.change(id, func(s *sandboxState) {
		s.Connected = true
		for _, ip := range result.IPs {
			s.IPs = append(s.IPs, ip.String())
		}
	})
}

// teardown disconnects a pod, also when CNI is not configured any more.
func (c *Config) teardown(ctx context.Context, pod network.Pod) error {
	if c.Network == nil {
		return errors.New("disconnect from the network: it was not Docker's, and there is none now")
	}
	return c.Network.Teardown(ctx, pod)
}

// networkPod describes the sandbox to package network.
func (r *Runtime) networkPod(p *sandbox) network.Pod {
	c := p.rec.config()
	return pod.Network(p.id, p.netns(), c.GetLinux().GetCgroupParent(), c)
}

// netns is the path of the pod's network namespace, "" if it is the host's or
// gone. It is where Docker binds it, which no other pod's ever is: that below
// /proc may be another process's by the time that the pod is disconnected.
func (p *sandbox) netns() string {
	if p.rec.hostNetwork() || p.state.Pid == 0 {
		return ""
	}
	if s := p.seen.NetworkSettings; s != nil && s.SandboxKey != "" {
		if _, err := os.Stat(s.SandboxKey); err == nil {
			return s.SandboxKey
		}
	}
	return fmt.Sprintf("/proc/%d/ns/net", p.state.Pid)
}

// UpdateRuntimeConfig hands the node's pod CIDRs to our network and its plugins.
// Docker's bridge has the addresses that its own configuration says.
func (r *Runtime) UpdateRuntimeConfig(_ context.Context, req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	cidr := req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()
	if cidr != "" && !r.cfg.connects() {
		r.log.Warn("the pod CIDR is not used: Docker's bridge has addresses of its own", "podCIDR", cidr)
	}
	if r.cfg.Network != nil {
		if err := r.cfg.Network.SetPodCIDR(cidr); err != nil {
			return nil, cri.Errorf(codes.InvalidArgument, "pod CIDR: %v", err)
		}
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}
