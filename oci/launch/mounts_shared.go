package launch

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A container may have no mount namespace of its own: it inherits the forker's, or
// joins one by its path. Then what it has mounted is there for all in that
// namespace, at and below root.path, and its root is no more than a chroot. What
// enters the container later has to change its root too.

// sharesMounts tells whether there is no new mount namespace.
func (c *compiler) sharesMounts() bool { return c.new&unix.CLONE_NEWNS == 0 }

func (c *compiler) checkSharedMounts() error {
	field := "linux.namespaces"
	for i, ns := range c.spec.Linux.Namespaces {
		if ns.Type == specs.MountNamespace {
			field = fmt.Sprintf("linux.namespaces[%d].path", i)
		}
	}
	switch {
	case !c.opt.SharedMounts:
		return fmt.Errorf("%s: a container needs a mount namespace of its own", field)
	case c.has[specs.UserNamespace]:
		return fmt.Errorf("%s: with a user namespace, a container needs a mount namespace of its own", field)
	case c.spec.Linux.RootfsPropagation != "":
		return fmt.Errorf("linux.rootfsPropagation: needs a mount namespace of the container's own")
	case c.opt.Rootfs != nil:
		return fmt.Errorf("%s: an overlay root needs a mount namespace of the container's own", field)
	}
	return nil
}

// attachSharedRoot puts the root at its path, where others see it, but not what is
// mounted below in other namespaces that a shared mount would show it to.
func (c *compiler) attachSharedRoot() {
	const text = "attach the root"
	at := inBundle(c.opt.Bundle, c.spec.Root.Path)
	c.do(text, cMoveMount, c.root, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
	private := c.put(unix.MountAttr{Propagation: unix.MS_PRIVATE})
	c.do(text, cMountSetattr, c.root, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, private)
}
