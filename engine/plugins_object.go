package engine

import (
	"maps"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/internal/cdi"
	"podstead/sys"
)

// podObject describes a sandbox to NRI plugins. Maps are copies: plugins'
// answers are worked into the description.
func (e *Engine) podObject(r *sandboxRecord) *api.PodSandbox {
	c, m := r.config(), r.config().GetMetadata()
	pod := &api.PodSandbox{
		Id: r.ID, Name: m.GetName(), Uid: m.GetUid(), Namespace: m.GetNamespace(),
		Labels: maps.Clone(c.GetLabels()), Annotations: maps.Clone(c.GetAnnotations()),
		RuntimeHandler: r.Handler, Pid: uint32(r.PausePid),
		Linux: &api.LinuxPodSandbox{
			PodOverhead: limitsObject(c.GetLinux().GetOverhead()), PodResources: limitsObject(c.GetLinux().GetResources()),
			CgroupParent: r.CgroupParent, CgroupsPath: pauseCgroup(r),
			Namespaces: e.podNamespaces(r),
		},
	}
	for _, ip := range r.IPs {
		pod.Ips = append(pod.Ips, ip.String())
	}
	return pod
}

// podNamespaces are those that a pod has for its own, as long as it has them.
func (e *Engine) podNamespaces(r *sandboxRecord) []*api.LinuxNamespace {
	if r.Phase == sandboxStopped {
		return nil
	}
	var list []*api.LinuxNamespace
	add := func(kind specs.LinuxNamespaceType, path string) {
		if path != "" {
			list = append(list, &api.LinuxNamespace{Type: string(kind), Path: path})
		}
	}
	add(specs.NetworkNamespace, e.netnsPath(r))
	add(specs.IPCNamespace, e.ipcPath(r))
	add(specs.UserNamespace, e.usernsPath(r))
	if !r.hostNetwork() {
		add(specs.UTSNamespace, e.namespacePath(r.ID, sys.UTSNamespace))
	}
	if r.Pause && r.PausePid != 0 {
		add(specs.PIDNamespace, pidNamespace(r.PausePid))
	}
	return list
}

// containerObject describes a container to NRI plugins, with what its
// specification says if there is one.
func (e *Engine) containerObject(r *containerRecord, s *specs.Spec) *api.Container {
	c := r.config()
	o := &api.Container{
		Id: r.ID, PodSandboxId: r.SandboxID, Name: c.GetMetadata().GetName(), State: containerObjectState(r.Phase),
		Labels: maps.Clone(c.GetLabels()), Annotations: maps.Clone(c.GetAnnotations()),
		Pid: uint32(e.hostPid(r)), CreatedAt: r.CreatedAt.UnixNano(), StartedAt: nanoseconds(r.StartedAt), FinishedAt: nanoseconds(r.FinishedAt),
		ExitCode: r.ExitCode, StatusReason: r.Reason, StatusMessage: r.Message,
		User:  &api.User{Uid: r.User.UID, Gid: r.User.GID, AdditionalGids: slices.Clone(r.User.Groups)},
		Image: &api.Image{Name: r.ImageName, ConfigDigest: r.ImageID},
		Linux: &api.LinuxContainer{CgroupsPath: r.Cgroup, SeccompProfile: seccompObject(c.GetLinux().GetSecurityContext().GetSeccomp())},
	}
	if _, digest, ok := strings.Cut(r.ImageRef, "@"); ok {
		o.Image.Digest = digest
	}
	if names, err := cdi.Asked(c); err == nil {
		for _, name := range names {
			o.CDIDevices = append(o.CDIDevices, &api.CDIDevice{Name: name})
		}
	}
	if s != nil {
		describeSpec(o, s)
	}
	return o
}

func describeSpec(o *api.Container, s *specs.Spec) {
	for k, v := range s.Annotations {
		if o.Annotations == nil {
			o.Annotations = map[string]string{}
		}
		o.Annotations[k] = v
	}
	o.Mounts = api.FromOCIMounts(s.Mounts)
	o.Hooks = api.FromOCIHooks(s.Hooks)
	if p := s.Process; p != nil {
		o.Args, o.Env = slices.Clone(p.Args), slices.Clone(p.Env)
		for _, l := range p.Rlimits {
			o.Rlimits = append(o.Rlimits, &api.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
		}
		if p.OOMScoreAdj != nil {
			o.Linux.OomScoreAdj = api.Int(*p.OOMScoreAdj)
		}
		o.Linux.IoPriority = api.FromOCILinuxIOPriority(p.IOPriority)
		o.Linux.Scheduler = api.FromOCILinuxScheduler(p.Scheduler)
	}
	if l := s.Linux; l != nil {
		o.Linux.Namespaces = api.FromOCILinuxNamespaces(l.Namespaces)
		o.Linux.Devices = api.FromOCILinuxDevices(l.Devices)
		o.Linux.Resources = api.FromOCILinuxResources(l.Resources, nil)
		o.Linux.Sysctl = maps.Clone(l.Sysctl)
		o.Linux.NetDevices = api.FromOCILinuxNetDevices(l.NetDevices)
	}
}

func containerObjectState(p containerPhase) api.ContainerState {
	switch p {
	case containerRunning:
		return api.ContainerState_CONTAINER_RUNNING
	case containerExited:
		return api.ContainerState_CONTAINER_STOPPED
	}
	return api.ContainerState_CONTAINER_CREATED
}

func seccompObject(p *runtimeapi.SecurityProfile) *api.SecurityProfile {
	o := &api.SecurityProfile{ProfileType: api.SecurityProfile_RUNTIME_DEFAULT, LocalhostRef: p.GetLocalhostRef()}
	switch {
	case p == nil || p.ProfileType == runtimeapi.SecurityProfile_Unconfined:
		o.ProfileType = api.SecurityProfile_UNCONFINED
	case p.ProfileType == runtimeapi.SecurityProfile_Localhost:
		o.ProfileType = api.SecurityProfile_LOCALHOST
	}
	return o
}
