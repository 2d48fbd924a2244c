// Package launch starts containers: it compiles an OCI runtime specification
// into a launch program, a flat list of raw system calls with arguments laid
// out in advance, descriptor slots and a label for errors, and executes it in
// a forked child without an intermediate program image and without cgo.
//
//	Compile (pure)  →  Program.Open (opens what the slots name)  →  Fork  →  Child.Start
//
// Compile and Open run in the engine or the OCI command line; Fork and
// Child.* run in the supervisor, which gets the encoded program and the open
// descriptors. Nothing here survives a crash or has to: a child that waits for
// its start ends when its forker does.
//
// What the container's author can change is never trusted on the way: mounts are
// moved by descriptor onto destinations that openat2 resolved inside the root,
// what belongs to the host's procfs is written before the host is left, sysctls
// go through a procfs that nobody else can reach, devices and terminals are
// opened by what they are and not by their names. testdata has programs to read.
//
// It needs Linux 5.12 (mount_setattr), for overlay roots 6.7 ("lowerdir+"), on
// amd64 or arm64, and a forker with CAP_SYS_ADMIN or Options.Unprivileged.
// What is not supported is refused by the name of its field:
// linux.intelRdt without Options.Resctrl, netDevices without Options.NetDevices, a mount namespace to be joined, and
// none at all; seccomp notification without Options.Listener.
package launch

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/oci/seccomp"
)

// Options is what Compile needs beyond the specification.
type Options struct {
	// ID names the container in error texts.
	ID string
	// Bundle is the directory that relative paths of the specification refer to.
	Bundle string
	// Rootfs, if set, is mounted as root in place of Spec.Root.Path.
	Rootfs *Overlay
	// CgroupJoin are the files that the child writes "0" to in order to join its
	// cgroup (cgroup v1: one tasks file per hierarchy), and CgroupDir, if not
	// empty, a cgroup v2 directory to be born in (CLONE_INTO_CGROUP).
	CgroupJoin []string
	CgroupDir  string
	// Hooks tells that the forker runs the specification's hooks, when the child
	// says that it has reached one of the points for it; without, those hooks
	// that must run while the child prepares itself are refused.
	Hooks bool
	// NetDevices tells that the forker moves linux.netDevices at PointCreated;
	// without, they are refused.
	NetDevices bool
	// Unprivileged tells that the forker has no privilege of its own: the child
	// opens what it mounts itself, in the user namespace that the container must
	// have then, and what the kernel does not mount there is bound from the host.
	Unprivileged bool
	// BindDevices binds the host's device nodes also without a user namespace of
	// the container's: for a forker that is root of one itself.
	BindDevices bool
	// Resctrl tells that the forker sees to linux.intelRdt; without, it is refused.
	Resctrl bool
	// KeepKeyring leaves the process in the forker's session keyring.
	KeepKeyring bool
	// NoPivot enters the root by chroot instead of pivot_root, which the kernel
	// does not allow where the host's root is the initial RAM disk. The host's
	// tree stays mounted below: a process with CAP_SYS_CHROOT can get there.
	NoPivot bool
	// SharedMounts allows a container without a mount namespace of its own. Its
	// mounts are at and below root.path, of the host or of the namespace that is
	// joined, and stay there until the forker unmounts them.
	SharedMounts bool
	// Listener tells that the forker sees to linux.seccomp.listenerPath, by
	// Child.AtListener; without, it is refused.
	Listener bool
	// MountNamespace is the path of a mount namespace with few mounts, such as
	// that of NewSeed, that the container's starts as a copy of; empty means
	// that of the forker. It is not used with a user namespace, in which the
	// kernel allows a new proc and sysfs only where the host's are in sight, nor
	// with hooks that want to see the host's files.
	MountNamespace string
	// Filter is Spec.Linux.Seccomp already compiled; nil means that Compile
	// does it. Compiling takes longer than all the rest, and most containers
	// have the same profile.
	Filter *seccomp.Filter
}

// Overlay describes an overlay mount: Lower directories from top to bottom, and
// Upper and Work for writes; with Upper empty the mount is read-only.
type Overlay struct {
	Lower       []string
	Upper, Work string
	// Options are further options of the file system, "key" or "key=value".
	Options []string
	// IDMapped makes the layers belong to the container's user namespace: the
	// owners on disk are taken for ids inside.
	IDMapped bool
}

// Compile translates a validated OCI specification. It touches nothing; an
// error names the field of the specification, e.g. "process.rlimits[2].type".
// A property that is not supported is an error, never ignored.
func Compile(spec *specs.Spec, opt Options) (*Program, error) {
	c, err := newCompiler(spec, spec.Process, opt)
	if err != nil {
		return nil, err
	}
	return c.container(opt)
}

// ExecOptions says where CompileExec's process runs.
type ExecOptions struct {
	ID string
	// Pid is a process in the target container, whose namespaces, root and
	// user namespace are joined.
	Pid        int
	CgroupJoin []string        // see Options
	CgroupDir  string          // see Options
	Filter     *seccomp.Filter // see Options
	Listener   bool            // see Options
	// Unprivileged tells that the forker must enter the container's user
	// namespace first.
	Unprivileged bool
}

// CompileExec translates a process that joins a running container. spec is the
// container's own specification (seccomp, masked defaults), proc the process.
func CompileExec(spec *specs.Spec, proc *specs.Process, opt ExecOptions) (*Program, error) {
	c, err := newCompiler(spec, proc, Options{ID: opt.ID, Filter: opt.Filter, Listener: opt.Listener})
	if err != nil {
		return nil, err
	}
	return c.exec(opt)
}

// CompilePause returns the program of a pod's pid-1 process in a new pid
// namespace: it reaps orphans, ends at SIGTERM, and does nothing else. Of the
// specification only namespaces, names and SELinux labels are looked at.
func CompilePause(spec *specs.Spec, opt Options) (*Program, error) {
	c, err := newCompiler(spec, pauseProcess(spec), opt)
	if err != nil {
		return nil, err
	}
	return c.pause(opt)
}
