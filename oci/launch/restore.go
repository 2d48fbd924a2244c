package launch

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Restorer is how a process that restores a container finds what the container
// gets from outside. Paths are in the restorer's own mount namespace.
type Restorer struct {
	*Program
	// Root is where the container's root is mounted, RootSlot which of Open's
	// files it is.
	Root     string
	RootSlot int
	// Mounts are the bind mounts of the specification.
	Mounts []RestorerMount
	// Socket is the descriptor that was given to Open, Namespaces are the
	// descriptors of the namespaces that cannot be opened by path later, because
	// CRIU wants to be handed them: network and pid.
	Socket     int
	Namespaces map[specs.LinuxNamespaceType]int
}

// RestorerMount is a bind mount of a container: where it belongs in there, and
// where the restorer has its source.
type RestorerMount struct {
	Destination string
	Source      string
	Recursive   bool
	HostPath    string // the source's path on the host, for its submounts
}

// RestoreOptions is what CompileRestore needs beyond Options.
type RestoreOptions struct {
	// Dir is an existing directory of the host. The restorer mounts a tmpfs over
	// it, in a mount namespace of its own, and has root and mounts below.
	Dir string
	// Path and Args are the program to execute. SocketArg is put in place of the
	// socket's number.
	Path string
	Args []string
	Env  []string
}

// CompileRestore translates the launch of a program of the host that restores a
// container from a checkpoint: with the host's privilege, in the container's
// cgroup and in a mount namespace where it finds root and bind mounts of the
// specification, opened as they are for an ordinary launch. What it forks is
// born in the container's cgroup and cgroup namespace; everything else of the
// container is the restorer's to make. Program.Open must be given the socket on
// which the restorer is told what to do. It is never for a container's image:
// the program at Path is trusted.
func CompileRestore(spec *specs.Spec, opt Options, r RestoreOptions) (*Restorer, error) {
	c, err := newCompiler(spec, spec.Process, opt)
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(r.Dir) || !filepath.IsAbs(r.Path) {
		return nil, fmt.Errorf("restore %s: %s and %s must be absolute", opt.ID, r.Dir, r.Path)
	}
	out := &Restorer{Root: filepath.Join(r.Dir, "root"), Namespaces: map[specs.LinuxNamespaceType]int{}}
	if err := c.restorerNamespaces(out); err != nil {
		return nil, err
	}
	if err := c.openRoot(opt); err != nil {
		return nil, err
	}
	out.RootSlot = int(c.root)
	mounts, err := c.parseMounts(opt)
	if err != nil {
		return nil, err
	}
	if s := spec.Linux.Seccomp; s != nil && s.ListenerPath != "" {
		return nil, fmt.Errorf("linux.seccomp.listenerPath: a container with a listener cannot be restored")
	}
	if len(spec.Linux.NetDevices) > 0 {
		return nil, fmt.Errorf("linux.netDevices: a container with them cannot be restored")
	}
	for i := range mounts {
		if mounts[i].remount {
			return nil, fmt.Errorf("%s.options: a container with remounts cannot be restored", mounts[i].field)
		}
	}
	c.joinCgroup(opt.CgroupJoin, opt.CgroupDir)
	c.do("cut propagation to the host", cMount, nil, "/", nil, unix.MS_REC|unix.MS_PRIVATE, nil)
	if r, ok := c.join[specs.CgroupNamespace]; ok {
		c.do("join cgroup namespace", cSetns, r, unix.CLONE_NEWCGROUP)
	} else if c.has[specs.CgroupNamespace] {
		c.do("make a cgroup namespace", cUnshare, unix.CLONE_NEWCGROUP)
	}
	c.restorerMounts(out, mounts, r.Dir)
	if c.proc.NoNewPrivileges {
		// CRIU before 3.19 does not restore it. What it forks has it from birth,
		// whatever the images say.
		c.do("set no_new_privs", cSetNoNewPrivs, 1)
	}
	c.do("reset signals", cSignals)
	c.do("close descriptors", cCloseAll, 0)
	c.do("restore the limit of open files", cFileLimit)
	c.do("wait for the start", cPrepared)
	c.do("prepare to execute", cExecuting)
	args := make([]string, len(r.Args))
	for i, a := range r.Args {
		args[i] = strings.ReplaceAll(a, SocketArg, strconv.Itoa(out.Socket))
	}
	c.do("exec "+r.Path, cExecve, r.Path, c.vector(args), c.vector(r.Env))
	out.Program, err = c.finish()
	return out, err
}

// SocketArg stands for the number of the restorer's socket in its arguments.
const SocketArg = "{socket}"

// restorerNamespaces sorts out what the restorer is handed and what it makes.
func (c *compiler) restorerNamespaces(out *Restorer) error {
	pass := func(s slot) int {
		c.p.passed = append(c.p.passed, int(c.addSlot(s)))
		return 2 + len(c.p.passed)
	}
	out.Socket = pass(slot{kind: slotGiven, label: "the restorer's socket"})
	for i, ns := range c.spec.Linux.Namespaces {
		if namespaceFlag[ns.Type] == 0 {
			return fmt.Errorf("linux.namespaces[%d].type: %q is not supported", i, ns.Type)
		}
		c.has[ns.Type] = true
		if ns.Path == "" {
			continue
		}
		s := slot{kind: slotFile, path: ns.Path, flags: unix.O_RDONLY, label: "open " + string(ns.Type) + " namespace"}
		switch ns.Type {
		case specs.NetworkNamespace, specs.PIDNamespace:
			out.Namespaces[ns.Type] = pass(s)
		case specs.CgroupNamespace:
			c.join[ns.Type] = c.addSlot(s)
		}
	}
	if !c.has[specs.MountNamespace] {
		return fmt.Errorf("linux.namespaces: a mount namespace is required")
	}
	if c.has[specs.UserNamespace] {
		return fmt.Errorf("linux.namespaces: a container with a user namespace cannot be restored")
	}
	c.p.clone = unix.CLONE_NEWNS
	return nil
}

// restorerMounts attaches root and bind mounts below a tmpfs of the restorer's.
func (c *compiler) restorerMounts(out *Restorer, mounts []parsedMount, dir string) {
	root := c.root
	c.root = c.newMount("mount the restorer's directory", "tmpfs", "tmpfs", []string{"mode=700"}, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	c.do("attach the restorer's directory", cMoveMount, c.root, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
	at := c.targetDir("root", inRoot)
	c.do("attach the root", cMoveMount, root, "", at, "", moveByFd)
	for i := range mounts {
		m := &mounts[i]
		name := "mount-" + strconv.Itoa(i)
		if m.typ == "cgroup" && !m.bind && !c.has[specs.CgroupNamespace] {
			c.restorerCgroups(out, m, dir, name)
		}
		if !m.bind {
			continue
		}
		tree := c.tree(m.bindSlot(c.opt.Bundle))
		target := c.target(name, tree)
		c.do(m.text(), cMoveMount, tree, "", target, "", moveByFd)
		out.Mounts = append(out.Mounts, RestorerMount{
			Destination: "/" + m.dest, Source: filepath.Join(dir, name), Recursive: m.recursive, HostPath: inBundle(c.opt.Bundle, m.src),
		})
	}
}

// restorerCgroups attaches the container's own groups, which it sees by bind
// mounts if it has no cgroup namespace.
func (c *compiler) restorerCgroups(out *Restorer, m *parsedMount, dir, name string) {
	groups := hierarchies(c.opt.CgroupJoin)
	if len(groups) == 0 && c.opt.CgroupDir != "" {
		groups = []hierarchy{{"", c.opt.CgroupDir}} // v2
	}
	for i, h := range groups {
		at := name + "-" + strconv.Itoa(i)
		tree := c.groupTree(m.text(), h.group, m)
		c.do(m.text(), cMoveMount, tree, "", c.targetDir(at, inRoot), "", moveByFd)
		out.Mounts = append(out.Mounts, RestorerMount{
			Destination: filepath.Join("/", m.dest, h.name), Source: filepath.Join(dir, at), HostPath: h.group,
		})
	}
}
