package docker

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/internal/spec"
)

// Docker's own log files are what the copying of logs reads, and what is left
// of them bounds how long this program may be away.
var logConfig = container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "16m", "max-file": "4"}}

// containerOptions describes a container to Docker.
func (r *Runtime) containerOptions(k *creation) (client.ContainerCreateOptions, error) {
	c, none := k.config, client.ContainerCreateOptions{}
	labels, err := labelsOf(c.Labels, map[string]string{
		labelType: typeContainer, labelSandbox: k.pod.id, labelLogPath: k.rec.LogPath,
	}, &k.rec)
	if err != nil {
		return none, err
	}
	config := &container.Config{
		Image: k.rec.ImageID, Labels: labels, Entrypoint: c.Command, Cmd: c.Args,
		User:       fmt.Sprintf("%d:%d", k.rec.UID, k.rec.GID),
		WorkingDir: c.WorkingDir, Tty: c.Tty, OpenStdin: c.Stdin, StdinOnce: c.StdinOnce,
		// A health check of the image's is the kubelet's affair: probes.
		Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
	}
	for _, e := range c.Envs {
		config.Env = append(config.Env, e.Key+"="+string(e.Value))
	}
	config.Env = append(config.Env, k.env...)
	host := &container.HostConfig{Runtime: k.pod.rec.Handler, LogConfig: logConfig, GroupAdd: k.groups}
	host.Devices, host.DeviceRequests = k.devices, k.requests
	if err := r.namespaces(host, k); err != nil {
		return none, err
	}
	if err := r.security(host, k); err != nil {
		return none, err
	}
	host.Mounts, host.Binds = k.mounts, k.binds
	for _, d := range c.Devices {
		permissions := d.Permissions
		if permissions == "" {
			permissions = "rwm"
		}
		host.Devices = append(host.Devices, container.DeviceMapping{
			PathOnHost: d.HostPath, PathInContainer: d.ContainerPath, CgroupPermissions: permissions,
		})
	}
	parent, err := r.cgroupParent(k.pod.rec.config().GetLinux().GetCgroupParent())
	if err != nil {
		return none, err
	}
	setResources(&host.Resources, c.GetLinux().GetResources())
	host.CgroupParent = parent
	if res := k.rec.config().GetLinux().GetResources(); res != nil {
		host.OomScoreAdj = int(res.OomScoreAdj)
	}
	return client.ContainerCreateOptions{
		Name: containerName(c.Metadata, k.pod.rec.config().Metadata), Config: config, HostConfig: host,
	}, nil
}

// namespaces joins the container to its pod's.
func (r *Runtime) namespaces(host *container.HostConfig, k *creation) error {
	pods := "container:" + k.pod.id
	host.NetworkMode, host.IpcMode = container.NetworkMode(pods), container.IpcMode(pods)
	if k.pod.rec.hostNetwork() {
		host.UTSMode = "host"
	}
	if k.pod.rec.namespaces().GetIpc() == runtimeapi.NamespaceMode_NODE {
		host.IpcMode = "host"
	}
	switch o := k.config.GetLinux().GetSecurityContext().GetNamespaceOptions(); o.GetPid() {
	case runtimeapi.NamespaceMode_NODE:
		host.PidMode = "host"
	case runtimeapi.NamespaceMode_POD:
		host.PidMode = container.PidMode(pods)
	case runtimeapi.NamespaceMode_TARGET:
		host.PidMode = container.PidMode("container:" + k.target)
	case runtimeapi.NamespaceMode_CONTAINER:
	default:
		return invalid("linux.security_context.namespace_options.pid: %v is unknown", o.GetPid())
	}
	return nil
}

// security limits what the container may do.
func (r *Runtime) security(host *container.HostConfig, k *creation) error {
	sc := k.config.GetLinux().GetSecurityContext()
	host.Privileged, host.ReadonlyRootfs = sc.GetPrivileged(), sc.GetReadonlyRootfs()
	host.CapAdd, host.CapDrop = sc.GetCapabilities().GetAddCapabilities(), sc.GetCapabilities().GetDropCapabilities()
	// Nothing set means nothing masked here, and Docker's own lists there.
	host.MaskedPaths = append([]string{}, sc.GetMaskedPaths()...)
	host.ReadonlyPaths = append([]string{}, sc.GetReadonlyPaths()...)
	for _, g := range k.rec.Groups {
		host.GroupAdd = append(host.GroupAdd, strconv.FormatUint(uint64(g), 10))
	}
	if sc.GetNoNewPrivs() {
		host.SecurityOpt = append(host.SecurityOpt, "no-new-privileges")
	}
	host.SecurityOpt = append(host.SecurityOpt, r.seLinux(sc.GetSelinuxOptions())...)
	if r.hasSecurity("userns") {
		host.UsernsMode = "host" // which the pod's namespaces belong to
	}
	filter, err := r.seccomp(sc)
	if err != nil {
		return err
	}
	profile, err := r.appArmor(sc)
	if err != nil {
		return err
	}
	for key, value := range map[string]string{"seccomp": filter, "apparmor": profile} {
		if value != "" {
			host.SecurityOpt = append(host.SecurityOpt, key+"="+value)
		}
	}
	return nil
}

// seccomp is what Docker is to be told of system call filters, "" for its own
// default.
func (r *Runtime) seccomp(sc *runtimeapi.LinuxContainerSecurityContext) (string, error) {
	wanted, err := spec.SeccompWanted(sc)
	switch {
	case err != nil:
		return "", err
	case wanted.Unconfined:
		return "unconfined", nil
	case !r.hasSecurity("seccomp"):
		return "", invalid("seccomp: a profile is asked for, and this Docker Engine has no seccomp")
	case wanted.Localhost == "":
		return "", nil
	}
	b, err := os.ReadFile(wanted.Localhost)
	if err != nil {
		return "", invalid("seccomp profile: %v", err)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, b); err != nil {
		return "", invalid("seccomp profile %s: %v", wanted.Localhost, err)
	}
	return compact.String(), nil
}

// seLinux is what Docker is to be told of a label; where there is no SELinux it
// has no meaning, and passes on every runtime.
func (r *Runtime) seLinux(o *runtimeapi.SELinuxOption) (options []string) {
	if o == nil || !r.hasSecurity("selinux") {
		return nil
	}
	for _, part := range [][2]string{{"user", o.User}, {"role", o.Role}, {"type", o.Type}, {"level", o.Level}} {
		if part[1] != "" {
			options = append(options, "label="+part[0]+":"+part[1])
		}
	}
	return options
}

// appArmor is the profile's name, "" for Docker's own default.
func (r *Runtime) appArmor(sc *runtimeapi.LinuxContainerSecurityContext) (string, error) {
	name := spec.AppArmorWanted(sc)
	switch {
	case !r.hasSecurity("apparmor") && name != "" && name != "unconfined":
		return "", invalid("apparmor: profile %q is asked for, and this Docker Engine has no AppArmor", name)
	case !r.hasSecurity("apparmor") || name == "" || name == "runtime/default":
		return "", nil
	case name == "unconfined":
		return name, nil
	}
	profile, ok := strings.CutPrefix(name, "localhost/")
	if !ok || profile == "" {
		return "", invalid("apparmor: %q is none of runtime/default, unconfined and localhost/PROFILE", name)
	}
	return profile, nil
}

// setResources translates limits. Memory without a word about swap means no
// swap beyond it, where Docker would give the same again.
func setResources(to *container.Resources, from *runtimeapi.LinuxContainerResources) {
	to.CPUPeriod, to.CPUQuota, to.CPUShares = from.GetCpuPeriod(), from.GetCpuQuota(), from.GetCpuShares()
	to.CpusetCpus, to.CpusetMems = from.GetCpusetCpus(), from.GetCpusetMems()
	to.Memory, to.MemorySwap = from.GetMemoryLimitInBytes(), from.GetMemorySwapLimitInBytes()
	if to.Memory > 0 && to.MemorySwap == 0 {
		to.MemorySwap = to.Memory
	}
}
