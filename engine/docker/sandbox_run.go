package docker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	dockernetwork "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/network"
)

// shmSize is that of a pod's /dev/shm, what every runtime gives.
const shmSize = 64 << 20

// sandboxOOMScore protects the process that holds a pod's namespaces, as far
// as the host allows.
const sandboxOOMScore = -998

// RunPodSandbox starts a pause container, whose namespaces are the pod's.
// Nothing of it is left if it fails. The same request again gets the same
// sandbox, as long as that is ready.
func (r *Runtime) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	if err := r.checkSandbox(req.Config); err != nil {
		return nil, err
	}
	if err := r.present(); err != nil {
		return nil, err
	}
	if err := r.checkHandler(req.RuntimeHandler); err != nil {
		return nil, err
	}
	req = proto.CloneOf(req)
	of := fingerprint(req)
	id, err := r.join(ctx, "run "+sandboxName(req.Config.Metadata)+" "+of, runTimeout, func(ctx context.Context) (string, error) {
		return r.runSandbox(ctx, req, of)
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func (r *Runtime) runSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest, of string) (string, error) {
	if err := r.ensurePauseImage(ctx); err != nil {
		return "", err
	}
	rec := sandboxRecord{Handler: req.RuntimeHandler, CreatedAt: time.Now().UnixNano(), Fingerprint: of}
	rec.Config.M = req.Config
	rec.Plugins = !rec.hostNetwork() && r.cfg.Network != nil && r.cfg.Network.HasPlugins()
	if parent := req.Config.GetLinux().GetCgroupParent(); parent != "" && !r.systemdCgroups() {
		rec.OwnCgroup = !r.cfg.Cgroups.Group(parent).Exists()
	}
	options, err := r.sandboxOptions(&rec)
	if err != nil {
		return "", err
	}
	id, existing, err := r.createSandbox(ctx, options, of)
	if err != nil || existing {
		return id, err
	}
	if err := r.startSandbox(ctx, id, &rec); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		return "", errors.Join(err, r.discardSandbox(ctx, &pod{id: id, rec: rec}))
	}
	m := req.Config.Metadata
	r.log.Info("pod sandbox is ready", "pod", id, "name", m.Name, "namespace", m.Namespace)
	return id, nil
}

// createSandbox makes the container, or finds the one that an equal request
// made. One that a crash left half-made is made anew.
func (r *Runtime) createSandbox(ctx context.Context, options client.ContainerCreateOptions, of string) (id string, existing bool, err error) {
	for range 2 {
		res, err := r.api().ContainerCreate(ctx, options)
		if err == nil {
			r.warn(res)
			return res.ID, false, nil
		}
		if !errdefs.IsConflict(err) {
			return "", false, failed(err, "create pod sandbox %s", options.Name)
		}
		found, ferr := r.api().ContainerInspect(ctx, options.Name, client.ContainerInspectOptions{})
		if errdefs.IsNotFound(ferr) {
			continue // gone meanwhile
		}
		if ferr != nil {
			return "", false, failed(ferr, "inspect pod sandbox %s", options.Name)
		}
		p, err := r.pod(ctx, found.Container.ID)
		if err != nil {
			return "", false, err
		}
		if p != nil && p.rec.Fingerprint == of && r.ready(p) {
			return p.id, true, nil
		}
		if p == nil || p.rec.Fingerprint != of || !r.halfMade(p) {
			return "", false, cri.Errorf(codes.AlreadyExists, "pod sandbox %s exists already as %s", options.Name, found.Container.ID)
		}
		if err := r.discardSandbox(ctx, p); err != nil {
			return "", false, fmt.Errorf("remove half-made pod sandbox %s: %w", p.id, err)
		}
	}
	return "", false, cri.Errorf(codes.Unavailable, "pod sandbox %s: its name is taken again and again", options.Name)
}

// halfMade tells whether a crash interrupted a sandbox's creation.
func (r *Runtime) halfMade(p *pod) bool {
	return p.state.Status == container.StateCreated || p.state.Running && !r.ready(p)
}

// warn logs what Docker says of a container that it made nevertheless.
func (r *Runtime) warn(res client.ContainerCreateResult) {
	for _, w := range res.Warnings {
		r.log.Warn("Docker warns of a new container", "container", res.ID, "warning", w)
	}
}

// startSandbox starts the process, and connects the network if that is not
// Docker's. The state is written last: who has plugins and none is not ready.
func (r *Runtime) startSandbox(ctx context.Context, id string, rec *sandboxRecord) error {
	if _, err := r.api().ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		return failed(err, "start pod sandbox %s", id)
	}
	if !rec.Plugins {
		return nil
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

// discardSandbox removes all that a sandbox has, however far its creation came.
func (r *Runtime) discardSandbox(ctx context.Context, p *pod) error {
	if p.rec.Plugins {
		if err := r.cfg.teardown(ctx, r.networkPod(p)); err != nil {
			return err
		}
	}
	if err := r.removeDocker(ctx, p.id); err != nil {
		return err
	}
	r.gauges.forget(p.id)
	if err := r.sandboxState.delete(p.id); err != nil {
		return err
	}
	return r.removePodCgroup(ctx, p)
}

// teardown disconnects a pod, also when CNI is not configured any more.
func (c *Config) teardown(ctx context.Context, pod network.Pod) error {
	if c.Network == nil {
		return errors.New("disconnect from the network: CNI plugins connected the pod, and there is no network now")
	}
	return c.Network.Teardown(ctx, pod)
}

// removePodCgroup removes the pod's group if nobody else had made it.
func (r *Runtime) removePodCgroup(ctx context.Context, p *pod) error {
	if !p.rec.OwnCgroup {
		return nil
	}
	parent := p.rec.config().GetLinux().GetCgroupParent()
	others, err := r.pods(ctx)
	if err != nil {
		return err
	}
	for _, o := range others {
		if at := o.rec.config().GetLinux().GetCgroupParent(); o.id != p.id && (at == parent || strings.HasPrefix(at, parent+"/")) {
			return nil // it stays with the other sandbox
		}
	}
	g := r.cfg.Cgroups.Group(parent)
	if procs, err := g.Procs(); err != nil || len(procs) > 0 {
		return err
	}
	return g.Remove(ctx)
}

// networkPod describes the sandbox to package network.
func (r *Runtime) networkPod(p *pod) network.Pod {
	c := p.rec.config()
	m := c.GetMetadata()
	out := network.Pod{
		ID: p.id, Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUid(),
		Netns: p.netns(), Annotations: c.GetAnnotations(), CgroupParent: c.GetLinux().GetCgroupParent(),
	}
	if d := c.GetDnsConfig(); d != nil {
		out.DNS = network.DNS{Servers: d.Servers, Searches: d.Searches, Options: d.Options}
	}
	for _, pm := range c.GetPortMappings() {
		if pm.HostPort == 0 {
			continue
		}
		ip, _ := netip.ParseAddr(pm.HostIp) // checked by cri.Validate; empty is all addresses
		out.Ports = append(out.Ports, network.PortMapping{
			Protocol: pm.Protocol.String(), HostIP: ip,
			HostPort: uint16(pm.HostPort), ContainerPort: uint16(pm.ContainerPort),
		})
	}
	return out
}

// netns is the path of the pod's network namespace, "" if it is the host's or
// gone.
func (p *pod) netns() string {
	if p.rec.hostNetwork() || p.state.Pid == 0 {
		return ""
	}
	return fmt.Sprintf("/proc/%d/ns/net", p.state.Pid)
}

// sandboxOptions describes the pause container to Docker.
func (r *Runtime) sandboxOptions(rec *sandboxRecord) (client.ContainerCreateOptions, error) {
	c, none := rec.config(), client.ContainerCreateOptions{}
	labels, err := labelsOf(c.Labels, map[string]string{labelType: typeSandbox}, rec)
	if err != nil {
		return none, err
	}
	parent, err := r.cgroupParent(c.GetLinux().GetCgroupParent())
	if err != nil {
		return none, err
	}
	config := &container.Config{Image: pauseImage, Labels: labels, Hostname: c.Hostname}
	host := &container.HostConfig{
		NetworkMode: "bridge", IpcMode: container.IPCModeShareable, Runtime: rec.Handler,
		Sysctls: c.GetLinux().GetSysctls(), ShmSize: shmSize,
		CapDrop: []string{"ALL"}, SecurityOpt: []string{"no-new-privileges"}, ReadonlyRootfs: true,
		LogConfig:   container.LogConfig{Type: "none"},
		OomScoreAdj: r.oomScore(sandboxOOMScore),
		Resources:   container.Resources{CgroupParent: parent},
	}
	o := rec.namespaces()
	if o.GetPid() == runtimeapi.NamespaceMode_NODE {
		host.PidMode = "host"
	}
	if o.GetIpc() == runtimeapi.NamespaceMode_NODE {
		host.IpcMode, host.ShmSize = "host", 0
	}
	switch {
	case rec.hostNetwork():
		host.NetworkMode, host.UTSMode, config.Hostname = "host", "host", ""
	case rec.Plugins:
		host.NetworkMode = "none"
	default:
		if err := publish(config, host, c.PortMappings); err != nil {
			return none, err
		}
	}
	if err := resolver(host, c.DnsConfig); err != nil {
		return none, err
	}
	return client.ContainerCreateOptions{Name: sandboxName(c.Metadata), Config: config, HostConfig: host}, nil
}

// cgroupParent is the pod's cgroup as Docker wants it: a path, or for systemd
// the name of the slice alone.
func (r *Runtime) cgroupParent(parent string) (string, error) {
	switch {
	case parent == "":
		return "", nil
	case !path.IsAbs(parent) || path.Clean(parent) != strings.TrimSuffix(parent, "/"):
		return "", invalid("linux.cgroup_parent: %q is not an absolute path below the root", parent)
	case !r.systemdCgroups():
		return parent, nil
	case !strings.HasSuffix(parent, ".slice"):
		return "", invalid("linux.cgroup_parent: %q is not a slice, and Docker's cgroup driver is systemd", parent)
	}
	return path.Base(parent), nil
}

// publish asks Docker for the host ports.
func publish(config *container.Config, host *container.HostConfig, ports []*runtimeapi.PortMapping) error {
	for _, m := range ports {
		if m.HostPort == 0 {
			continue
		}
		port, ok := dockernetwork.PortFrom(uint16(m.ContainerPort), dockernetwork.IPProtocol(strings.ToLower(m.Protocol.String())))
		if !ok {
			return invalid("config.port_mappings: %d/%s is no port", m.ContainerPort, m.Protocol)
		}
		if host.PortBindings == nil {
			host.PortBindings, config.ExposedPorts = dockernetwork.PortMap{}, dockernetwork.PortSet{}
		}
		config.ExposedPorts[port] = struct{}{}
		ip, _ := netip.ParseAddr(m.HostIp) // checked by cri.Validate; empty is all addresses
		host.PortBindings[port] = append(host.PortBindings[port], dockernetwork.PortBinding{
			HostIP: ip, HostPort: fmt.Sprint(m.HostPort),
		})
	}
	return nil
}

// resolver has Docker write resolv.conf, or copy the host's if the request says
// nothing.
func resolver(host *container.HostConfig, d *runtimeapi.DNSConfig) error {
	for i, s := range d.GetServers() {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			return invalid("config.dns_config.servers[%d]: %v", i, err)
		}
		host.DNS = append(host.DNS, ip)
	}
	for field, values := range map[string][]string{"searches": d.GetSearches(), "options": d.GetOptions()} {
		for _, v := range values {
			if v == "" || strings.ContainsAny(v, " \t\r\n\x00") {
				return invalid("config.dns_config.%s: %q is empty or has white space", field, v)
			}
		}
	}
	host.DNSSearch, host.DNSOptions = d.GetSearches(), d.GetOptions()
	return nil
}
