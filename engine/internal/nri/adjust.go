package nri

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Adjust applies what plugins want of a container to its specification. What
// the engine cannot do is refused with the field's name; what the handler
// cannot is refused by the handler, with the specification's name for it.
// inject gives the container CDI devices. After an error the specification must
// not be used.
func Adjust(s *specs.Spec, a *api.ContainerAdjustment, inject func(*specs.Spec, []string) error) error {
	if a == nil {
		return nil
	}
	if err := adjustProcess(s, a); err != nil {
		return err
	}
	if err := adjustAnnotations(s, a.Annotations); err != nil {
		return err
	}
	addHooks(s, a.Hooks)
	var names []string
	for _, d := range a.CDIDevices {
		names = append(names, d.Name)
	}
	if err := inject(s, names); err != nil {
		return fmt.Errorf("CDI_devices: %w", err)
	}
	if err := adjustLinux(s, a.GetLinux()); err != nil {
		return fmt.Errorf("linux.%w", err)
	}
	return adjustMounts(s, a.Mounts)
}

func adjustProcess(s *specs.Spec, a *api.ContainerAdjustment) error {
	p := s.Process
	for _, e := range a.Env {
		key, removed := api.IsMarkedForRemoval(e.Key)
		if key == "" || strings.ContainsAny(key, "=\x00") || strings.ContainsRune(e.Value, 0) {
			return fmt.Errorf("env: %q is no name of a variable, or its value no text", e.Key)
		}
		at := slices.IndexFunc(p.Env, func(v string) bool { return strings.HasPrefix(v, key+"=") })
		switch {
		case removed:
			p.Env = slices.DeleteFunc(p.Env, func(v string) bool { return strings.HasPrefix(v, key+"=") })
		case at >= 0:
			p.Env[at] = key + "=" + e.Value
		default:
			p.Env = append(p.Env, key+"="+e.Value)
		}
	}
	if len(a.Args) > 0 {
		p.Args = slices.Clone(a.Args)
	}
	for _, l := range a.Rlimits {
		p.Rlimits = slices.DeleteFunc(p.Rlimits, func(r specs.POSIXRlimit) bool { return r.Type == l.Type })
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
	}
	l := a.GetLinux()
	if l.GetOomScoreAdj() != nil {
		p.OOMScoreAdj = new(int(l.OomScoreAdj.Value))
	}
	if l.GetIoPriority() != nil {
		if p.IOPriority = l.IoPriority.ToOCI(); p.IOPriority.Class == "" {
			p.IOPriority = nil
		}
	}
	if l.GetScheduler() != nil {
		p.Scheduler = l.Scheduler.ToOCI()
	}
	return nil
}

func adjustAnnotations(s *specs.Spec, changes map[string]string) error {
	if s.Annotations == nil && len(changes) > 0 {
		s.Annotations = map[string]string{}
	}
	return change(s.Annotations, changes, "annotations")
}

// change edits a map in which a key with a mark is to be removed. A key may be
// both: then it is replaced.
func change(m, changes map[string]string, field string) error {
	for _, k := range slices.Sorted(maps.Keys(changes)) { // the mark, "-", sorts first
		key, removed := api.IsMarkedForRemoval(k)
		if key == "" {
			return fmt.Errorf("%s: a key is empty", field)
		}
		if removed {
			delete(m, key)
		}
	}
	for k, v := range changes {
		if _, removed := api.IsMarkedForRemoval(k); !removed {
			m[k] = v
		}
	}
	return nil
}

func addHooks(s *specs.Spec, h *api.Hooks) {
	if h = h.Hooks(); h == nil {
		return
	}
	if s.Hooks == nil {
		s.Hooks = &specs.Hooks{}
	}
	for _, kind := range []struct {
		to   *[]specs.Hook
		from []*api.Hook
	}{
		{&s.Hooks.Prestart, h.Prestart}, //nolint:staticcheck // deprecated, but plugins may use it
		{&s.Hooks.CreateRuntime, h.CreateRuntime},
		{&s.Hooks.CreateContainer, h.CreateContainer},
		{&s.Hooks.StartContainer, h.StartContainer},
		{&s.Hooks.Poststart, h.Poststart},
		{&s.Hooks.Poststop, h.Poststop},
	} {
		for _, hook := range kind.from {
			*kind.to = append(*kind.to, hook.ToOCI())
		}
	}
}

func adjustLinux(s *specs.Spec, a *api.LinuxContainerAdjustment) error {
	if a == nil {
		return nil
	}
	l := s.Linux
	if a.CgroupsPath != "" && a.CgroupsPath != l.CgroupsPath {
		return fmt.Errorf("cgroups_path: %q: the engine gives each container a group of its own below its pod's", a.CgroupsPath)
	}
	for _, d := range a.Devices {
		adjustDevice(l, d)
	}
	for _, n := range a.Namespaces {
		kind, removed := api.IsMarkedForRemoval(n.Type)
		l.Namespaces = slices.DeleteFunc(l.Namespaces, func(o specs.LinuxNamespace) bool { return string(o.Type) == kind })
		if !removed {
			l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.LinuxNamespaceType(kind), Path: n.Path})
		}
	}
	if l.Sysctl == nil && len(a.Sysctl) > 0 {
		l.Sysctl = map[string]string{}
	}
	if err := change(l.Sysctl, a.Sysctl, "sysctl"); err != nil {
		return err
	}
	if a.SeccompPolicy != nil {
		l.Seccomp = seccompPolicy(a.SeccompPolicy)
	}
	for k, d := range a.NetDevices {
		if key, removed := api.IsMarkedForRemoval(k); removed {
			delete(l.NetDevices, key)
			continue
		}
		if l.NetDevices == nil {
			l.NetDevices = map[string]specs.LinuxNetDevice{}
		}
		l.NetDevices[k] = d.ToOCI()
	}
	if a.MemoryPolicy != nil {
		if l.MemoryPolicy = a.MemoryPolicy.ToOCI(); l.MemoryPolicy.Mode == "" {
			l.MemoryPolicy = nil
		}
	}
	adjustRdt(l, a.Rdt)
	if l.Resources == nil {
		l.Resources = &specs.LinuxResources{}
	}
	if err := SetLimits(l.Resources, a.Resources); err != nil {
		return fmt.Errorf("resources.%w", err)
	}
	return nil
}

// adjustDevice adds, replaces or removes a node, and the cgroup's rule for it.
func adjustDevice(l *specs.Linux, d *api.LinuxDevice) {
	name, removed := api.IsMarkedForRemoval(d.Path)
	for _, old := range l.Devices {
		if path.Clean(old.Path) == path.Clean(name) && l.Resources != nil {
			l.Resources.Devices = slices.DeleteFunc(l.Resources.Devices, func(r specs.LinuxDeviceCgroup) bool {
				return r.Allow && r.Type == old.Type && r.Major != nil && *r.Major == old.Major && r.Minor != nil && *r.Minor == old.Minor
			})
		}
	}
	l.Devices = slices.DeleteFunc(l.Devices, func(old specs.LinuxDevice) bool { return path.Clean(old.Path) == path.Clean(name) })
	if removed {
		return
	}
	l.Devices = append(l.Devices, d.ToOCI())
	if l.Resources == nil {
		l.Resources = &specs.LinuxResources{}
	}
	if access := d.AccessString(); access != "" && d.Type != "p" {
		l.Resources.Devices = append(l.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: d.Type, Major: new(d.Major), Minor: new(d.Minor), Access: access,
		})
	}
}

func adjustRdt(l *specs.Linux, r *api.LinuxRdt) {
	if r == nil {
		return
	}
	if r.Remove {
		l.IntelRdt = nil
	}
	if r.ClosId == nil && r.Schemata == nil && r.EnableMonitoring == nil {
		return
	}
	if l.IntelRdt == nil {
		l.IntelRdt = &specs.LinuxIntelRdt{}
	}
	if r.ClosId != nil {
		l.IntelRdt.ClosID = r.ClosId.Value
	}
	if r.Schemata != nil {
		l.IntelRdt.Schemata = slices.Clone(r.Schemata.Value)
	}
	if r.EnableMonitoring != nil {
		l.IntelRdt.EnableMonitoring = r.EnableMonitoring.Value
	}
}

// seccompPolicy translates a profile, with the default error that the library
// leaves out.
func seccompPolicy(a *api.LinuxSeccomp) *specs.LinuxSeccomp {
	out := &specs.LinuxSeccomp{
		DefaultAction: specs.LinuxSeccompAction(a.DefaultAction),
		ListenerPath:  a.ListenerPath, ListenerMetadata: a.ListenerMetadata,
		Syscalls: api.ToOCILinuxSyscalls(a.Syscalls),
	}
	if a.DefaultErrno != nil {
		out.DefaultErrnoRet = new(uint(a.DefaultErrno.Value))
	}
	for _, arch := range a.Architectures {
		out.Architectures = append(out.Architectures, specs.Arch(arch))
	}
	for _, flag := range a.Flags {
		out.Flags = append(out.Flags, specs.LinuxSeccompFlag(flag))
	}
	return out
}

// adjustMounts adds, replaces or removes mounts. One inside another must come
// after it.
func adjustMounts(s *specs.Spec, mounts []*api.Mount) error {
	if len(mounts) == 0 {
		return nil
	}
	for _, m := range mounts {
		destination, removed := api.IsMarkedForRemoval(m.Destination)
		if !path.IsAbs(destination) {
			return fmt.Errorf("mounts: the destination %q is not absolute", destination)
		}
		destination = path.Clean(destination)
		s.Mounts = slices.DeleteFunc(s.Mounts, func(o specs.Mount) bool { return path.Clean(o.Destination) == destination })
		if !removed {
			var propagation string
			o := m.ToOCI(&propagation)
			s.Mounts = append(s.Mounts, o)
			if propagation == "rshared" || propagation == "rslave" && s.Linux.RootfsPropagation != "rshared" {
				s.Linux.RootfsPropagation = propagation
			}
		}
	}
	slices.SortStableFunc(s.Mounts, func(a, b specs.Mount) int {
		return strings.Count(path.Clean(a.Destination), "/") - strings.Count(path.Clean(b.Destination), "/")
	})
	return nil
}
