package spec

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// mounts fills s.Mounts: what every container has, then the request's mounts,
// parents before children. A mount of the request replaces a default one of
// the same place.
func (in *Input) mounts(s *specs.Spec) error {
	defaults := append(in.systemMounts(), in.podMounts()...)
	var own []specs.Mount
	propagation := "rprivate"
	for i, m := range in.Config.Mounts {
		om, err := in.mount(i, m)
		if err != nil {
			return err
		}
		own = append(own, om)
		defaults = slices.DeleteFunc(defaults, func(d specs.Mount) bool { return d.Destination == om.Destination })
		switch {
		case m.Propagation == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
			propagation = "rshared"
		case m.Propagation == runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER && propagation == "rprivate":
			propagation = "rslave"
		}
	}
	slices.SortStableFunc(own, func(a, b specs.Mount) int { return depth(a.Destination) - depth(b.Destination) })
	s.Mounts = append(defaults, own...)
	s.Linux.RootfsPropagation = propagation
	return nil
}

func depth(p string) int {
	if p == "/" {
		return 0
	}
	return strings.Count(p, "/")
}

// systemMounts are the kernel's filesystems.
func (in *Input) systemMounts() []specs.Mount {
	ro := "ro"
	if in.privileged() {
		ro = "rw"
	}
	// Only the owner of a network namespace can mount its sysfs.
	sysfs := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", ro}}
	if in.Namespaces.User != "" && in.Namespaces.Network == "" {
		sysfs.Type, sysfs.Source, sysfs.Options = "bind", "/sys", append([]string{"bind", "rprivate"}, sysfs.Options...)
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		sysfs,
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", ro}},
	}
}

// podMounts are the files that the engine made for the pod.
func (in *Input) podMounts() []specs.Mount {
	options := []string{"rbind", "rprivate"}
	if in.Config.GetLinux().GetSecurityContext().GetReadonlyRootfs() {
		options = append(options, "ro")
	} else {
		options = append(options, "rw")
	}
	var mounts []specs.Mount
	for _, f := range []struct{ destination, source string }{
		{"/etc/hostname", in.Files.Hostname},
		{"/etc/hosts", in.Files.Hosts},
		{"/etc/resolv.conf", in.Files.ResolvConf},
	} {
		if f.source != "" {
			mounts = append(mounts, specs.Mount{Destination: f.destination, Type: "bind", Source: f.source, Options: options})
		}
	}
	if in.Files.Shm != "" {
		mounts = append(mounts, specs.Mount{
			Destination: "/dev/shm", Type: "bind", Source: in.Files.Shm,
			Options: []string{"rbind", "rprivate", "rw"},
		})
	}
	return mounts
}

// mount translates one mount of the request.
func (in *Input) mount(i int, m *runtimeapi.Mount) (specs.Mount, error) {
	fail := func(format string, args ...any) (specs.Mount, error) {
		return specs.Mount{}, invalid("mounts[%d] (%s): "+format, append([]any{i, m.ContainerPath}, args...)...)
	}
	if m.ContainerPath == "" || m.HostPath == "" {
		return fail("container_path and host_path must be set")
	}
	if strings.ContainsFunc(m.ContainerPath+m.HostPath, func(r rune) bool { return r == 0 }) {
		return fail("a path has a NUL byte")
	}
	if n := len(m.UidMappings) + len(m.GidMappings); n > 0 && in.Namespaces.User == "" {
		return fail("uidMappings and gidMappings are set, and the pod has no user namespace")
	}
	options := []string{"rbind"}
	source := in.Host.MountPropagation(m.HostPath)
	switch m.Propagation {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		options = append(options, "rprivate")
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		if source == PropagationPrivate {
			return fail("propagation HOST_TO_CONTAINER: %s is not on a shared or slave mount", m.HostPath)
		}
		options = append(options, "rslave")
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		if source != PropagationShared {
			return fail("propagation BIDIRECTIONAL: %s is not on a shared mount", m.HostPath)
		}
		options = append(options, "rshared")
	default:
		return fail("propagation %v is unknown", m.Propagation)
	}
	readonly, err := in.readonly(m)
	if err != nil {
		return specs.Mount{}, err
	}
	options = append(options, readonly)
	for _, o := range m.MountOptions {
		if o != "noexec" && o != "nodev" && o != "nosuid" {
			return fail("mount_options: %q is not one of noexec, nodev, nosuid", o)
		}
		options = append(options, o)
	}
	return specs.Mount{
		Destination: path.Clean("/" + m.ContainerPath), Type: "bind", Source: m.HostPath, Options: options,
		UIDMappings: IDMappings(m.UidMappings), GIDMappings: IDMappings(m.GidMappings),
	}, nil
}

// IDMappings translates the mappings of a user namespace or a mount.
func IDMappings(list []*runtimeapi.IDMapping) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range list {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.ContainerId, HostID: m.HostId, Size: m.Length})
	}
	return out
}

// readonly checks the rules of recursive_read_only (KEP-3857).
func (in *Input) readonly(m *runtimeapi.Mount) (string, error) {
	switch {
	case m.RecursiveReadOnly && !m.Readonly:
		return "", invalid("mount %s: recursive_read_only without readonly", m.ContainerPath)
	case m.RecursiveReadOnly && m.Propagation != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return "", invalid("mount %s: recursive_read_only with propagation %v", m.ContainerPath, m.Propagation)
	case m.RecursiveReadOnly && !in.Host.RecursiveReadOnly:
		return "", cri.WithReason(cri.RROUnsupported,
			invalid("mount %s: recursive_read_only: the kernel (mount_setattr, Linux 5.12) or the handler of the pod has none", m.ContainerPath))
	case m.RecursiveReadOnly:
		return "rro", nil
	case m.Readonly:
		return "ro", nil
	}
	return "rw", nil
}
