package launch

import (
	"path"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// hierarchy is one cgroup hierarchy of a v1 or hybrid host: the name of its
// directory below /sys/fs/cgroup, and the container's group there.
type hierarchy struct{ name, group string }

const cgroupRoot = "/sys/fs/cgroup/"

// hierarchies derives the host's cgroup v1 set-up from the files to join; it
// is empty on cgroup v2.
func hierarchies(join []string) (list []hierarchy) {
	for _, f := range join {
		rel, ok := strings.CutPrefix(f, cgroupRoot)
		if !ok || path.Base(f) != "tasks" && !strings.HasPrefix(rel, "unified/") {
			continue
		}
		name, _, _ := strings.Cut(rel, "/")
		list = append(list, hierarchy{name, path.Dir(f)})
	}
	return list
}

// makeCgroup makes the mounts that show the container its own cgroup.
func (c *compiler) makeCgroup(m *parsedMount) {
	text := m.text()
	v1 := hierarchies(c.opt.CgroupJoin)
	if len(v1) == 0 {
		if group := c.opt.CgroupDir; group != "" && !c.has[specs.CgroupNamespace] {
			m.fs = c.groupTree(text, group, m)
		} else {
			m.fs = c.newMountOr(text, "cgroup2", "cgroup", m.data, m.all())
		}
		return
	}
	// As on the host: a directory for each hierarchy, and links for the
	// controllers that share one.
	m.fs = c.newMount(text, "tmpfs", "tmpfs", c.labelled("tmpfs", []string{"mode=755"}), m.all()&^unix.MOUNT_ATTR_RDONLY)
	for _, h := range v1 {
		m.parts = append(m.parts, c.makeHierarchy(h, m))
	}
}

func (c *compiler) makeHierarchy(h hierarchy, m *parsedMount) reg {
	text := m.text() + "/" + h.name
	switch {
	case !c.has[specs.CgroupNamespace]:
		return c.groupTree(text, h.group, m)
	case h.name == "unified":
		return c.newMount(text, "cgroup2", "cgroup", nil, m.all())
	case h.name == "systemd":
		return c.newMount(text, "cgroup", "cgroup", []string{"none", "name=systemd"}, m.all())
	}
	return c.newMount(text, "cgroup", "cgroup", strings.Split(h.name, ","), m.all())
}

// attachHierarchies fills the directory of a host with cgroup v1.
func (c *compiler) attachHierarchies(m *parsedMount) {
	v1 := hierarchies(c.opt.CgroupJoin)
	for i, h := range v1 {
		text := m.text() + "/" + h.name
		c.do(text, cMkdirat, m.fs, h.name, 0o755)
		target := c.get(text, cOpenat2, m.fs, h.name, c.how(unix.O_PATH|unix.O_DIRECTORY, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS))
		c.do(text, cMoveMount, m.parts[i], "", target, "", moveByFd)
		if controllers := strings.Split(h.name, ","); len(controllers) > 1 {
			for _, name := range controllers {
				c.do(text, cSymlinkat, h.name, m.fs, name).passing(syscall.EEXIST)
			}
		}
	}
	// Mount points of what is not one of the container's groups, such as systemd's
	// hierarchy for podman's --systemd, as nobody can make them later.
	for _, other := range c.spec.Mounts {
		if dir, name := path.Split(path.Clean(other.Destination)); len(v1) > 0 && name != "" && strings.Trim(dir, "/") == m.dest {
			c.do("make mount point "+other.Destination, cMkdirat, m.fs, name, 0o755).passing(syscall.EEXIST)
		}
	}
	if len(v1) > 0 && m.all()&unix.MOUNT_ATTR_RDONLY != 0 {
		c.do(m.text(), cMountSetattr, m.fs, "", unix.AT_EMPTY_PATH, c.put(unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}))
	}
}

// groupTree is a bind mount of the container's group, for a container that
// shares the host's cgroup namespace.
func (c *compiler) groupTree(text, group string, m *parsedMount) reg {
	return c.tree(slot{kind: slotTree, path: group, set: m.all(), propagation: unix.MS_PRIVATE, label: text})
}
