package launch

import (
	"fmt"
	"strings"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// parseIDMap finds out how the ids of a mount are mapped: by mappings of its
// own, or with the option alone by those of the container's user namespace.
func (c *compiler) parseIDMap(p *parsedMount, m specs.Mount) error {
	switch {
	case len(m.UIDMappings) > 0 && len(m.GIDMappings) > 0:
		p.maps = &idMaps{UID: formatMaps(m.UIDMappings), GID: formatMaps(m.GIDMappings)}
	case len(m.UIDMappings)+len(m.GIDMappings) > 0:
		return fmt.Errorf(".uidMappings: uid and gid mappings must be given together")
	case p.idmap:
		if p.maps = c.userMaps(); p.maps == nil {
			return fmt.Errorf(".options: idmap needs mappings, of the mount or of a user namespace")
		}
	}
	if p.maps != nil && !p.bind {
		return fmt.Errorf(".uidMappings: only bind mounts can be idmapped")
	}
	return nil
}

// userMaps are the mappings of the container's user namespace, nil if there are none.
func (c *compiler) userMaps() *idMaps {
	l := c.spec.Linux
	if len(l.UIDMappings) == 0 || len(l.GIDMappings) == 0 {
		return nil
	}
	return &idMaps{UID: formatMaps(l.UIDMappings), GID: formatMaps(l.GIDMappings)}
}

// mapTree maps the ids of a mount that nobody has seen yet. Only the forker can make
// the user namespace with the maps, of which one is enough for all alike.
func (c *compiler) mapTree(text string, tree reg, s slot) {
	userns, made := c.idmapped[*s.idmap]
	if !made {
		userns = c.addSlot(slot{kind: slotUserns, idmap: s.idmap, label: s.label})
		c.idmapped[*s.idmap] = userns
	}
	flags := unix.AT_EMPTY_PATH
	if s.flags&treeIdmapRecurses != 0 {
		flags |= unix.AT_RECURSIVE
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP}
	at := c.put(attr)
	c.do(text, cStore, at+ref(unsafe.Offsetof(attr.Userns_fd)), userns)
	c.do(text, cMountSetattr, tree, "", flags, at)
}

// idMaps translates linux.uidMappings and gidMappings.
func (c *compiler) idMaps() error {
	l := c.spec.Linux
	if !c.has[specs.UserNamespace] {
		if len(l.UIDMappings)+len(l.GIDMappings) > 0 {
			return fmt.Errorf("linux.uidMappings: there is no user namespace")
		}
		c.p.owner = c.proc.User.UID
		return nil
	}
	host, ok := hostID(l.UIDMappings, c.proc.User.UID)
	if !ok && len(l.UIDMappings) > 0 {
		return fmt.Errorf("process.user.uid: %d is not in linux.uidMappings", c.proc.User.UID)
	}
	c.p.owner = host
	if c.new&unix.CLONE_NEWUSER == 0 {
		return nil
	}
	if len(l.UIDMappings) == 0 || len(l.GIDMappings) == 0 {
		return fmt.Errorf("linux.uidMappings: a new user namespace needs uid and gid mappings")
	}
	c.p.maps = &idMaps{UID: formatMaps(l.UIDMappings), GID: formatMaps(l.GIDMappings)}
	return nil
}

func hostID(maps []specs.LinuxIDMapping, id uint32) (uint32, bool) {
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + (id - m.ContainerID), true
		}
	}
	return id, false
}

func formatMaps(maps []specs.LinuxIDMapping) string {
	var b strings.Builder
	for _, m := range maps {
		fmt.Fprintf(&b, "%d %d %d\n", m.ContainerID, m.HostID, m.Size)
	}
	return b.String()
}
