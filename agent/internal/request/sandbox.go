// Package request translates a pod into CRI messages, with the kubelet's names,
// labels and formulas, so that a runtime and the tools around it see what they
// would see under a kubelet. It is pure: what must be looked up is passed in.
package request

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/observe"
)

// Node is what requests need to know of the node.
type Node struct {
	Name        string
	AgentID     string // of LabelAgent
	PodLogsDir  string
	SeccompDir  string // of Localhost profiles
	MemoryBytes int64  // capacity, for oom_score_adj
	HostDNS     DNS    // of the host's resolv.conf
	ClusterDNS  []string
	// ClusterDomain is that of the names that ClusterDNS knows.
	ClusterDomain  string
	SeccompDefault bool // the runtime's profile for containers that name none
	SystemdSlice   bool // cgroup parents are named as slices
	// CgroupRoot is the parent of the kubepods tree; Cgroups false: no parents.
	CgroupRoot string
	Cgroups    bool
	// Sysctls are of pods that do not set them themselves.
	Sysctls   map[string]string
	HugePages []int64 // sizes whose use the host's cgroups can bound, in bytes
	CPU       CPU
	Memory    Memory
}

// maxHostname is what the kernel takes less one, as the kubelet has it of names;
// maxFQDN is all that the kernel takes.
const (
	maxHostname = 63
	maxFQDN     = 64
)

// Hostname is the pod's name for itself, and its domain, which may be "".
func (n Node) Hostname(pod *corev1.Pod) (name, domain string) {
	s := &pod.Spec
	switch {
	case s.HostnameOverride != nil && *s.HostnameOverride != "":
		return *s.HostnameOverride, ""
	case s.HostNetwork:
		return n.Name, ""
	case s.Hostname != "":
		name = s.Hostname
	default:
		name = strings.TrimRight(pod.Name[:min(len(pod.Name), maxHostname)], "-.")
	}
	if s.Subdomain != "" {
		domain = s.Subdomain + "." + pod.Namespace
		if n.ClusterDomain != "" {
			domain += ".svc." + n.ClusterDomain
		}
	}
	return name, domain
}

// uts is what the kernel is told of the name: the pod's leaf name or, if it wants
// that and there is a cluster domain to which it could belong, all of it.
func (n Node) uts(pod *corev1.Pod) (string, error) {
	name, domain := n.Hostname(pod)
	if !asFQDN(pod) || domain == "" || n.ClusterDomain == "" {
		return name, nil
	}
	fqdn := name + "." + domain
	if len(fqdn) > maxFQDN {
		return "", fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (%d characters is the max, %d characters requested)",
			fqdn, maxFQDN, len(fqdn))
	}
	return fqdn, nil
}

func asFQDN(pod *corev1.Pod) bool {
	return pod.Spec.SetHostnameAsFQDN != nil && *pod.Spec.SetHostnameAsFQDN
}

// LogDirectory is where the logs of a pod are.
func (n Node) LogDirectory(pod *corev1.Pod) string {
	return filepath.Join(n.PodLogsDir, pod.Namespace+"_"+pod.Name+"_"+string(pod.UID))
}

// Sandbox makes the configuration of a pod's sandbox.
func (n Node) Sandbox(pod *corev1.Pod, attempt uint32) (*runtimeapi.PodSandboxConfig, error) {
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{
			Name: pod.Name, Namespace: pod.Namespace, Uid: string(pod.UID), Attempt: attempt,
		},
		LogDirectory: n.LogDirectory(pod),
		Labels:       n.labels(pod, ""),
		Annotations:  map[string]string{},
		DnsConfig:    n.dns(pod),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    n.CgroupParent(pod),
			SecurityContext: n.sandboxSecurity(pod),
			Sysctls:         map[string]string{},
			Resources:       n.PodResources(pod),
			Overhead:        Overhead(pod),
		},
	}
	for k, v := range pod.Annotations {
		config.Annotations[k] = v
	}
	for k, v := range pod.Labels {
		if _, ours := config.Labels[k]; !ours {
			config.Labels[k] = v
		}
	}
	config.Annotations[observe.AnnotationSandboxHash] = SandboxHash(pod)
	if !pod.Spec.HostNetwork {
		name, err := n.uts(pod)
		if err != nil {
			return nil, err
		}
		config.Hostname = name
		config.PortMappings = portMappings(pod)
	}
	for name, value := range n.Sysctls {
		if !ofHost(pod, name) {
			config.Linux.Sysctls[name] = value
		}
	}
	for _, s := range pod.Spec.SecurityContext.Sysctls {
		config.Linux.Sysctls[strings.ReplaceAll(s.Name, "/", ".")] = s.Value
	}
	return config, nil
}

// Overhead is what a pod takes beside its containers; nil for nothing.
func Overhead(pod *corev1.Pod) *runtimeapi.LinuxContainerResources {
	if len(pod.Spec.Overhead) == 0 {
		return nil
	}
	cpu, memory := pod.Spec.Overhead[corev1.ResourceCPU], pod.Spec.Overhead[corev1.ResourceMemory]
	r := &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: memory.Value()}
	if !cpu.IsZero() {
		r.CpuShares, r.CpuPeriod, r.CpuQuota = shares(cpu), quotaPeriod, quota(cpu)
	}
	return r
}

// NamespacedSysctl tells whether the kernel keeps a sysctl for each namespace of a
// kind that pods have of their own.
func NamespacedSysctl(name string) bool {
	return strings.HasPrefix(name, "net.") || ipcSysctl(name) || name == "kernel.domainname" || strings.HasPrefix(name, "user.")
}

func ipcSysctl(name string) bool {
	for _, prefix := range []string{"kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// ofHost tells whether a namespaced sysctl of the pod's would be the host's.
func ofHost(pod *corev1.Pod, name string) bool {
	switch {
	case strings.HasPrefix(name, "net."), name == "kernel.domainname":
		return pod.Spec.HostNetwork
	case strings.HasPrefix(name, "user."):
		return HostUsers(pod)
	}
	return pod.Spec.HostIPC
}

func (n Node) labels(pod *corev1.Pod, container string) map[string]string {
	l := map[string]string{
		observe.LabelPodName:      pod.Name,
		observe.LabelPodNamespace: pod.Namespace,
		observe.LabelPodUID:       string(pod.UID),
		observe.LabelAgent:        n.AgentID,
	}
	if container != "" {
		l[observe.LabelContainerName] = container
	}
	return l
}

func portMappings(pod *corev1.Pod) (out []*runtimeapi.PortMapping) {
	add := func(list []corev1.Container) {
		for _, c := range list {
			for _, p := range c.Ports {
				out = append(out, &runtimeapi.PortMapping{
					Protocol:      runtimeapi.Protocol(runtimeapi.Protocol_value[string(p.Protocol)]),
					ContainerPort: p.ContainerPort, HostPort: p.HostPort, HostIp: p.HostIP,
				})
			}
		}
	}
	add(pod.Spec.InitContainers)
	add(pod.Spec.Containers)
	return out
}

func (n Node) sandboxSecurity(pod *corev1.Pod) *runtimeapi.LinuxSandboxSecurityContext {
	sc := pod.Spec.SecurityContext
	out := &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions:         namespaces(pod),
		SupplementalGroups:       groups(sc),
		SupplementalGroupsPolicy: groupsPolicy(sc),
		SelinuxOptions:           selinux(sc.SELinuxOptions),
		// The sandbox's own process, where there is one, is not of the pod's
		// author; it gets the default filter.
		Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
	}
	if sc.RunAsUser != nil {
		out.RunAsUser = &runtimeapi.Int64Value{Value: *sc.RunAsUser}
		if sc.RunAsGroup != nil {
			out.RunAsGroup = &runtimeapi.Int64Value{Value: *sc.RunAsGroup}
		}
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range list {
			out.Privileged = out.Privileged || privileged(&c)
		}
	}
	return out
}

func namespaces(pod *corev1.Pod) *runtimeapi.NamespaceOption {
	o := &runtimeapi.NamespaceOption{
		Network: runtimeapi.NamespaceMode_POD,
		Pid:     runtimeapi.NamespaceMode_CONTAINER,
		Ipc:     runtimeapi.NamespaceMode_POD,
	}
	if pod.Spec.HostNetwork {
		o.Network = runtimeapi.NamespaceMode_NODE
	}
	if pod.Spec.HostIPC {
		o.Ipc = runtimeapi.NamespaceMode_NODE
	}
	switch {
	case pod.Spec.HostPID:
		o.Pid = runtimeapi.NamespaceMode_NODE
	case pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace:
		o.Pid = runtimeapi.NamespaceMode_POD
	}
	return o
}

// HostUsers tells whether the pod's users are the host's.
func HostUsers(pod *corev1.Pod) bool { return pod.Spec.HostUsers == nil || *pod.Spec.HostUsers }

// RuntimeHandler is the handler a pod asks for. There are no RuntimeClass
// objects here: the name of the class is that of the handler.
func RuntimeHandler(pod *corev1.Pod) string {
	if pod.Spec.RuntimeClassName == nil {
		return ""
	}
	return *pod.Spec.RuntimeClassName
}

// LogPath is a container's log, relative to the sandbox's log directory.
func LogPath(container string, restarts int32) string {
	return filepath.Join(container, strconv.Itoa(int(restarts))+".log")
}
