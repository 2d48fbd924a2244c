// Package spec turns what a CRI client asks for and what an image says into an
// OCI runtime specification. It is pure: it opens no file and makes no system
// call; what must be looked up on the host (devices, mount sources, profiles,
// the image's account files) comes in by Input. It is called by the engine
// alone and keeps nothing.
//
// The request is the policy of whoever runs the node and is obeyed; the image's
// configuration is attacker input. A field that is not supported is an error
// that names it, never ignored.
package spec

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Input is everything that a container's specification is made from.
type Input struct {
	Config  *runtimeapi.ContainerConfig
	Sandbox *runtimeapi.PodSandboxConfig
	Image   ocispec.ImageConfig
	User    User

	Hostname   string
	Namespaces Namespaces
	Files      Files
	CgroupPath string
	Host       Host

	// Devices are those of Config.Devices, looked up, or all of the host's for
	// a privileged container.
	Devices []specs.LinuxDevice
	// DeviceAccess are the permissions ("rwm") of Devices, one each.
	DeviceAccess []string
	// ProcessLabel and MountLabel are SELinux's, "" for none.
	ProcessLabel, MountLabel string
	// Seccomp is the profile that SeccompWanted chose, nil for none.
	Seccomp *specs.LinuxSeccomp

	warnings *[]string
}

// Namespaces are paths of namespaces to join; an empty one is the host's, and
// PrivatePID asks for a pid namespace of the container's own.
type Namespaces struct {
	Network, IPC, UTS, PID, User string
	PrivatePID                   bool
	// UIDs and GIDs are the mappings of User.
	UIDs, GIDs []specs.LinuxIDMapping
}

// Files are the host paths of what every container of a pod gets mounted.
type Files struct {
	Hostname, Hosts, ResolvConf, Shm string
}

// Host is what the machine offers.
type Host struct {
	Capabilities      []string // bounding set of this process
	RecursiveReadOnly bool     // mount_setattr, kernel 5.12
	AppArmor          bool
	SELinux           bool // and the engine uses it
	CgroupUnified     bool
	SystemdCgroups    bool                          // pods have slices, containers scopes
	MountPropagation  func(path string) Propagation // of the mount that holds path
	LoadedAppArmor    func(profile string) bool
	DefaultAppArmor   func() (profile string, err error) // loads what RuntimeDefault means
}

// Propagation of a host mount.
type Propagation int

// A mount receives events if it is a slave or shared, and sends them if shared.
const (
	PropagationPrivate Propagation = iota
	PropagationSlave
	PropagationShared
)

func (in *Input) warn(s string) { *in.warnings = append(*in.warnings, s) }

func (in *Input) privileged() bool {
	return in.Config.GetLinux().GetSecurityContext().GetPrivileged()
}

// Build makes the specification. warnings name what was asked for and cannot
// be had where Kubernetes' other runtimes go on too.
func Build(in Input) (s *specs.Spec, warnings []string, err error) {
	in.warnings = &warnings
	s = &specs.Spec{Version: specs.Version, Root: &specs.Root{
		Path:     "rootfs",
		Readonly: in.Config.GetLinux().GetSecurityContext().GetReadonlyRootfs(),
	}}
	if s.Process, err = in.process(); err != nil {
		return nil, nil, err
	}
	l := &specs.Linux{
		CgroupsPath: in.CgroupPath, Namespaces: in.namespaces(), Seccomp: in.Seccomp,
		UIDMappings: in.Namespaces.UIDs, GIDMappings: in.Namespaces.GIDs,
	}
	s.Linux = l
	if err := in.mounts(s); err != nil {
		return nil, nil, err
	}
	if l.Resources, err = Resources(in.Config.GetLinux().GetResources()); err != nil {
		return nil, nil, err
	}
	s.Process.SelinuxLabel, l.MountLabel = in.ProcessLabel, in.MountLabel
	if in.Config.GetLinux().GetSecurityContext().GetSelinuxOptions() != nil && !in.Host.SELinux {
		in.warn("linux.security_context.selinux_options: this host has no SELinux, or it is off for containers")
	}
	in.devices(l)
	if s.Process.ApparmorProfile, err = in.appArmor(); err != nil {
		return nil, nil, err
	}
	if !in.privileged() {
		sc := in.Config.GetLinux().GetSecurityContext()
		l.MaskedPaths, l.ReadonlyPaths = sc.GetMaskedPaths(), sc.GetReadonlyPaths()
	}
	return s, warnings, nil
}

func (in *Input) namespaces() []specs.LinuxNamespace {
	ns := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	if in.Namespaces.PrivatePID {
		ns = append(ns, specs.LinuxNamespace{Type: specs.PIDNamespace})
	}
	for _, n := range []specs.LinuxNamespace{
		{Type: specs.PIDNamespace, Path: in.Namespaces.PID},
		{Type: specs.NetworkNamespace, Path: in.Namespaces.Network},
		{Type: specs.IPCNamespace, Path: in.Namespaces.IPC},
		{Type: specs.UTSNamespace, Path: in.Namespaces.UTS},
		{Type: specs.UserNamespace, Path: in.Namespaces.User},
	} {
		if n.Path != "" {
			ns = append(ns, n)
		}
	}
	if in.Host.CgroupUnified && !in.privileged() {
		ns = append(ns, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return ns
}

// devices lists the device nodes and the cgroup's rules for them. The nodes
// that every container has (null, zero, full, random, urandom, tty, ptmx) are
// made by the launch program; their rules stand here.
func (in *Input) devices(l *specs.Linux) {
	l.Devices = in.Devices
	if in.privileged() {
		l.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		return
	}
	l.Resources.Devices = append([]specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, defaultDeviceRules()...)
	for i, d := range in.Devices {
		major, minor := d.Major, d.Minor
		l.Resources.Devices = append(l.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: d.Type, Major: &major, Minor: &minor, Access: in.DeviceAccess[i],
		})
	}
}

func defaultDeviceRules() []specs.LinuxDeviceCgroup {
	rule := func(typ string, major, minor int64, access string) specs.LinuxDeviceCgroup {
		r := specs.LinuxDeviceCgroup{Allow: true, Type: typ, Access: access}
		if major >= 0 {
			r.Major = &major
		}
		if minor >= 0 {
			r.Minor = &minor
		}
		return r
	}
	return []specs.LinuxDeviceCgroup{
		rule("c", -1, -1, "m"), rule("b", -1, -1, "m"), // mknod alone opens nothing
		rule("c", 1, 3, "rwm"),    // null
		rule("c", 1, 5, "rwm"),    // zero
		rule("c", 1, 7, "rwm"),    // full
		rule("c", 1, 8, "rwm"),    // random
		rule("c", 1, 9, "rwm"),    // urandom
		rule("c", 5, 0, "rwm"),    // tty
		rule("c", 5, 1, "rwm"),    // console
		rule("c", 5, 2, "rwm"),    // ptmx
		rule("c", 136, -1, "rwm"), // pts
	}
}
