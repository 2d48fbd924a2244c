package docker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
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
	name := sandboxName(req.Config.Metadata)
	for range 2 {
		if id, err := r.existing(ctx, name, of); id != "" || err != nil {
			return id, err
		}
		id, err := r.makeSandbox(ctx, req, of)
		if errdefs.IsConflict(err) {
			continue // somebody has just taken the name
		}
		return id, err
	}
	return "", cri.Errorf(codes.Unavailable, "pod sandbox %s: its name is taken again and again", name)
}

// existing finds the sandbox that an equal request made, "" if there is none.
// One that a crash left half-made goes.
func (r *Runtime) existing(ctx context.Context, name, of string) (string, error) {
	found, err := r.api().ContainerInspect(ctx, name, client.ContainerInspectOptions{})
	if errdefs.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", failed(err, "inspect pod sandbox %s", name)
	}
	p, err := r.pod(ctx, found.Container.ID)
	switch {
	case err != nil:
		return "", err
	case p != nil && p.rec.Fingerprint == of && r.ready(p):
		return p.id, nil
	case p == nil || p.rec.Fingerprint != of || !r.halfMade(p):
		return "", cri.Errorf(codes.AlreadyExists, "pod sandbox %s exists already as %s", name, found.Container.ID)
	}
	if err := r.discardSandbox(ctx, p); err != nil {
		return "", fmt.Errorf("remove half-made pod sandbox %s: %w", p.id, err)
	}
	return "", nil
}

// makeSandbox makes and starts the container. It is a conflict if its name is
// taken.
func (r *Runtime) makeSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest, of string) (string, error) {
	rec := sandboxRecord{Handler: req.RuntimeHandler, CreatedAt: time.Now().UnixNano(), Fingerprint: of}
	rec.Config.M = req.Config
	rec.Connected = !rec.hostNetwork() && r.cfg.connects()
	if parent := req.Config.GetLinux().GetCgroupParent(); parent != "" && !r.systemdCgroups() {
		rec.OwnCgroup = !r.cfg.Cgroups.Group(parent).Exists()
	}
	options, err := r.sandboxOptions(&rec)
	if err != nil {
		return "", err
	}
	res, err := r.api().ContainerCreate(ctx, options)
	if errdefs.IsConflict(err) {
		return "", err
	}
	if err != nil {
		return "", failed(err, "create pod sandbox %s", options.Name)
	}
	r.warn(res)
	if err := r.startSandbox(ctx, res.ID, &rec); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		return "", errors.Join(err, r.discardSandbox(ctx, &sandbox{id: res.ID, rec: rec}))
	}
	m := req.Config.Metadata
	r.log.Info("pod sandbox is ready", "pod", res.ID, "name", m.Name, "namespace", m.Namespace)
	return res.ID, nil
}

// halfMade tells whether a crash interrupted a sandbox's creation.
func (r *Runtime) halfMade(p *sandbox) bool {
	return p.state.Status == container.StateCreated || p.state.Running && !r.ready(p)
}

// warn logs what Docker says of a container that it made nevertheless.
func (r *Runtime) warn(res client.ContainerCreateResult) {
	for _, w := range res.Warnings {
		r.log.Warn("Docker warns of a new container", "container", res.ID, "warning", w)
	}
}

// startSandbox starts the process, and connects the pod if Docker does not.
func (r *Runtime) startSandbox(ctx context.Context, id string, rec *sandboxRecord) error {
	if _, err := r.api().ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		return failed(err, "start pod sandbox %s", id)
	}
	if !rec.Connected {
		return nil
	}
	return r.connect(ctx, id)
}

// discardSandbox removes all that a sandbox has, however far its creation came.
// Docker's record goes last, since it tells a next attempt what there is to do.
func (r *Runtime) discardSandbox(ctx context.Context, p *sandbox) error {
	if p.rec.Connected {
		if err := r.cfg.teardown(ctx, r.networkPod(p)); err != nil {
			return err
		}
	}
	if err := r.kill(ctx, p.id); err != nil {
		return err
	}
	if err := r.removePodCgroup(ctx, p); err != nil {
		return err
	}
	if err := r.removeDocker(ctx, p.id); err != nil {
		return err
	}
	r.gauges.forget(p.id)
	r.stops.gone(p.id)
	return r.sandboxState.delete(p.id)
}

// removePodCgroup removes the pod's group if nobody else had made it.
func (r *Runtime) removePodCgroup(ctx context.Context, p *sandbox) error {
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
	host.SecurityOpt = append(host.SecurityOpt, r.seLinux(c.GetLinux().GetSecurityContext().GetSelinuxOptions())...)
	if r.hasSecurity("userns") {
		host.UsernsMode = "host"
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
	case rec.Connected:
		host.NetworkMode, host.Sysctls = "none", withIPv6(host.Sysctls)
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

// withIPv6 turns on what Docker turns off in a network namespace that it does not
// connect, unless the request says something about it.
func withIPv6(sysctls map[string]string) map[string]string {
	const disable = "net.ipv6.conf.all.disable_ipv6"
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return sysctls
	}
	all := map[string]string{disable: "0"}
	maps.Copy(all, sysctls)
	return all
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
