package spec

import (
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CheckSandbox refuses what RunPodSandbox cannot honour, by name. The request
// has passed cri.Validate.
func CheckSandbox(c *runtimeapi.PodSandboxConfig, host Host) error {
	switch {
	case len(c.Hostname) > 64:
		return invalid("config.hostname: %q is longer than the 64 bytes that Linux takes", c.Hostname)
	case strings.ContainsFunc(c.Hostname, func(r rune) bool { return isControl(r) || r == ' ' || r == '/' }):
		return invalid("config.hostname: %q is not a host name", c.Hostname)
	case c.LogDirectory != "" && !filepath.IsAbs(c.LogDirectory):
		return invalid("config.log_directory: %q is not absolute", c.LogDirectory)
	}
	sc := c.GetLinux().GetSecurityContext()
	o := sc.GetNamespaceOptions()
	if err := CheckNamespaces(o); err != nil {
		return err
	}
	if err := checkCgroup(c.GetLinux().GetCgroupParent(), host); err != nil {
		return err
	}
	if o.GetPid() == runtimeapi.NamespaceMode_TARGET {
		return invalid("linux.security_context.namespace_options.pid: TARGET is for containers only")
	}
	own := func(m runtimeapi.NamespaceMode) bool { return m != runtimeapi.NamespaceMode_NODE }
	if err := CheckSysctls(c.GetLinux().GetSysctls(), own(o.GetNetwork()), own(o.GetIpc())); err != nil {
		return err
	}
	return checkDNS(c.GetDnsConfig())
}

// CheckNamespaces refuses modes that no sandbox or container has.
func CheckNamespaces(o *runtimeapi.NamespaceOption) error {
	const field = "linux.security_context.namespace_options"
	pod, node := runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_NODE
	if m := o.GetNetwork(); m != pod && m != node {
		return invalid("%s.network: %v is not POD or NODE", field, m)
	}
	if m := o.GetIpc(); m != pod && m != node {
		return invalid("%s.ipc: %v is not POD or NODE", field, m)
	}
	if !HasUserNamespace(o) {
		return nil
	}
	for name, m := range map[string]runtimeapi.NamespaceMode{"ipc": o.GetIpc(), "pid": o.GetPid()} {
		if m == node {
			return invalid("%s.%s: NODE together with a user namespace (userns_options) is not supported", field, name)
		}
	}
	return nil
}

// HasUserNamespace tells whether a pod has a user namespace of its own.
func HasUserNamespace(o *runtimeapi.NamespaceOption) bool {
	return o.GetUsernsOptions() != nil && o.UsernsOptions.Mode == runtimeapi.NamespaceMode_POD
}

// checkCgroup refuses a parent that is no path, or is the root, whose other
// groups are the host's; with the systemd driver one that is no slice.
func checkCgroup(parent string, host Host) error {
	switch {
	case parent == "":
		return nil
	case host.SystemdCgroups && (!strings.HasSuffix(parent, ".slice") || strings.ContainsAny(parent, "/:") || parent == "-.slice"):
		return invalid("linux.cgroup_parent: %q is no slice, which the systemd driver of this runtime wants", parent)
	case host.SystemdCgroups:
		return nil
	case strings.Contains(parent, ":") || strings.HasSuffix(parent, ".slice"):
		return invalid("linux.cgroup_parent: %q is of the systemd driver; this runtime's is cgroupfs", parent)
	case !filepath.IsAbs(parent) || filepath.Clean(parent) != strings.TrimSuffix(parent, "/") || strings.ContainsFunc(parent, isControl):
		return invalid("linux.cgroup_parent: %q is not an absolute path below the root", parent)
	}
	return nil
}

// checkDNS keeps a value from becoming another line of resolv.conf.
func checkDNS(d *runtimeapi.DNSConfig) error {
	for field, values := range map[string][]string{
		"servers": d.GetServers(), "searches": d.GetSearches(), "options": d.GetOptions(),
	} {
		for _, v := range values {
			if v == "" || strings.ContainsFunc(v, func(r rune) bool { return isControl(r) || r == ' ' }) {
				return invalid("config.dns_config.%s: %q is empty or has white space", field, v)
			}
		}
	}
	return nil
}

// CheckContainer refuses what CreateContainer cannot honour, by name, as far
// as the request alone shows it. The request has passed cri.Validate.
func CheckContainer(c *runtimeapi.ContainerConfig, sandbox *runtimeapi.PodSandboxConfig) error {
	sc := c.GetLinux().GetSecurityContext()
	if err := CheckNamespaces(sc.GetNamespaceOptions()); err != nil {
		return err
	}
	own := sc.GetNamespaceOptions().GetUsernsOptions()
	pods := sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if own != nil && !proto.Equal(own, pods) {
		return invalid("linux.security_context.namespace_options.userns_options: differ from the pod sandbox's")
	}
	if sc.GetPrivileged() && !sandbox.GetLinux().GetSecurityContext().GetPrivileged() {
		return invalid("linux.security_context.privileged: the sandbox is not privileged")
	}
	_, err := LogPath(sandbox.GetLogDirectory(), c.LogPath)
	return err
}

// LogPath joins the pod's log directory and the container's log path, which
// must stay inside (CVE-2025-0750). Empty if either is not set: no log.
func LogPath(dir, name string) (string, error) {
	if dir == "" || name == "" {
		return "", nil
	}
	if !filepath.IsLocal(name) || strings.ContainsRune(name, 0) {
		return "", invalid("config.log_path: %q leads out of the log directory", name)
	}
	return filepath.Join(dir, name), nil
}
