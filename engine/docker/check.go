package docker

import (
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/internal/spec"
	"podstead/engine/internal/tree"
)

// checkSandbox refuses what Docker cannot do for a sandbox, by name. The request
// has passed cri.Validate.
func (r *Runtime) checkSandbox(c *runtimeapi.PodSandboxConfig) error {
	sc := c.GetLinux().GetSecurityContext()
	o := sc.GetNamespaceOptions()
	switch {
	case c.Hostname != "" && len(c.Hostname) > 64:
		return invalid("config.hostname: %q is longer than the 64 bytes that Linux takes", c.Hostname)
	case o.GetPid() == runtimeapi.NamespaceMode_TARGET:
		return invalid("linux.security_context.namespace_options.pid: TARGET is for containers only")
	}
	if err := checkNamespaces(o); err != nil {
		return err
	}
	if c.LogDirectory != "" {
		if _, err := spec.LogPath(c.LogDirectory, "log"); err != nil {
			return err
		}
	}
	own := func(m runtimeapi.NamespaceMode) bool { return m != runtimeapi.NamespaceMode_NODE }
	return spec.CheckSysctls(c.GetLinux().GetSysctls(), own(o.GetNetwork()), own(o.GetIpc()))
}

func checkNamespaces(o *runtimeapi.NamespaceOption) error {
	if spec.HasUserNamespace(o) {
		return invalid("linux.security_context.namespace_options.userns_options: Docker has no user namespace for a single pod")
	}
	return spec.CheckNamespaces(o)
}

// checkContainer refuses what Docker cannot do for a container, by name.
func (r *Runtime) checkContainer(c *runtimeapi.ContainerConfig, sandbox *runtimeapi.PodSandboxConfig) error {
	sc := c.GetLinux().GetSecurityContext()
	switch {
	case len(sc.GetCapabilities().GetAddAmbientCapabilities()) > 0:
		return invalid("linux.security_context.capabilities.add_ambient_capabilities: not supported on Docker")
	case sc.GetPrivileged() && !sandbox.GetLinux().GetSecurityContext().GetPrivileged():
		return invalid("linux.security_context.privileged: the sandbox is not privileged")
	}
	if err := checkNamespaces(sc.GetNamespaceOptions()); err != nil {
		return err
	}
	if err := r.checkResources(c.GetLinux().GetResources()); err != nil {
		return err
	}
	for i, m := range c.Mounts {
		if err := checkMount(m); err != nil {
			return fmt.Errorf("config.mounts[%d] (%s): %w", i, m.ContainerPath, err)
		}
	}
	return nil
}

// checkResources refuses limits that no cgroup of this machine has.
func (r *Runtime) checkResources(res *runtimeapi.LinuxContainerResources) error {
	if _, err := spec.Resources(res); err != nil {
		return err
	}
	if len(res.GetUnified()) > 0 && !r.cfg.Cgroups.Unified() {
		return invalid("linux.resources.unified: this machine has no cgroup v2")
	}
	return nil
}

func checkMount(m *runtimeapi.Mount) error {
	switch {
	case m.RecursiveReadOnly && !tree.HasMountSetattr():
		return cri.WithReason(cri.RROUnsupported, invalid("recursive_read_only: the kernel has no mount_setattr (Linux 5.12)"))
	case m.RecursiveReadOnly && !m.Readonly:
		return invalid("recursive_read_only without readonly")
	case m.RecursiveReadOnly && m.Propagation != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return invalid("recursive_read_only with propagation %v", m.Propagation)
	case len(m.UidMappings) > 0 || len(m.GidMappings) > 0:
		return invalid("uidMappings: Docker has no user namespace for a single pod")
	}
	for _, o := range m.MountOptions {
		if mountOptions[o] == 0 {
			return invalid("mount_options: %q is not one of noexec, nodev, nosuid", o)
		}
	}
	return nil
}
