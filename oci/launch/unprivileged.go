package launch

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Without a user namespace the child opens the sources of binds while it is in its
// forker's mount namespace. With one the forker has to, or, if it has no privilege,
// the child, as soon as it is root of its user namespace and has a mount namespace.

// tree opens a detached copy of the mounts at a path of the host: the child does,
// if it can, else Program.Open.
func (c *compiler) tree(s slot) reg {
	if !c.opens {
		return c.addSlot(s)
	}
	r := c.newReg()
	c.openTree(r, s)
	return r
}

// openTree is slot.openTree as calls of the child.
func (c *compiler) openTree(to reg, s slot) {
	if s.idmap != nil && c.opt.Unprivileged {
		c.fail(fmt.Errorf("%s: idmapped mounts need privilege", s.label))
		return
	}
	flags := unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC
	if s.flags&treeRecursive != 0 {
		flags |= unix.AT_RECURSIVE
	}
	text := s.label + ": " + s.path
	c.do(text, cOpenTree, unix.AT_FDCWD, s.path, flags).out = uint16(to)
	if s.idmap != nil {
		c.mapTree(text+": idmap", to, s)
	}
	c.setTree(text, to, true, unix.MountAttr{Attr_set: s.rset, Attr_clr: s.rclear})
	c.setTree(text, to, false, unix.MountAttr{Attr_set: s.set, Attr_clr: s.clear})
	c.setTree(text, to, s.flags&treePropagateRecurses != 0, unix.MountAttr{Propagation: s.propagation})
}

func (c *compiler) setTree(text string, tree reg, recursive bool, attr unix.MountAttr) {
	if attr == (unix.MountAttr{}) {
		return
	}
	flags := unix.AT_EMPTY_PATH
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	c.do(text+": set mount attributes", cMountSetattr, tree, "", flags, c.put(attr))
}

// hostMounts are what may be bound from the host where the kernel lets no new one
// be mounted: in a user namespace, sysfs only where the network is its own, and
// sysfs and proc only where nothing of the host's is hidden.
var hostMounts = map[string]string{"proc": "/proc", "sysfs": "/sys", "cgroup2": "/sys/fs/cgroup"}

// newMountOr makes a new mount, or binds the host's. A bound one is read-only, but
// for proc: what is writable in the host's /sys or its cgroups is not the
// container's (CVE-2023-25809).
func (c *compiler) newMountOr(text, typ, src string, data []string, attr uint64) reg {
	host, some := hostMounts[typ]
	if !some || !c.opt.Unprivileged && !c.opt.BindDevices {
		return c.newMount(text, typ, src, data, attr)
	}
	fs := c.newReg()
	bind := func() {
		bound := attr
		if typ != "proc" {
			bound |= unix.MOUNT_ATTR_RDONLY
		}
		c.do(text+": bound the host's instead", cWarn)
		c.do(text, cOpenTree, unix.AT_FDCWD, host, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE).out = uint16(fs)
		c.setTree(text, fs, true, unix.MountAttr{Attr_set: bound})
	}
	ctx := c.get(text, cFsopen, typ)
	c.ifElse(func() {
		if src != "" && src != "none" {
			c.do(text, cFsconfigString, ctx, "source", src)
		}
		c.configure(text, ctx, data)
		c.do(text, cFsconfigCreate, ctx)
		c.ifElse(func() {
			c.do(text, cFsmount, ctx, attr).out = uint16(fs)
			c.orElse(bind, syscall.EPERM, syscall.EBUSY)
		}, bind, syscall.EPERM, syscall.EBUSY)
	}, bind, syscall.EPERM)
	return fs
}

// joinUnprivileged enters all namespaces of a process, its user namespace first,
// and goes on in a new process, which alone can be in another pid namespace.
func (c *compiler) joinUnprivileged(target reg, flags uint64) {
	c.do("join the container's namespaces", cSetns, target, flags)
	if flags&unix.CLONE_NEWPID != 0 {
		c.do("clone into the pid namespace", cFork, 0)
	}
}
