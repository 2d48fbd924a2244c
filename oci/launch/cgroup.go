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

// mountCgroup shows the container its own cgroup.
func (c *compiler) mountCgroup(m *parsedMount) {
	text := m.text()
	target := c.targetDir(m.dest, inRoot)
	v1 := hierarchies(c.opt.CgroupJoin)
	if len(v1) == 0 {
		if group := c.opt.CgroupDir; group != "" && !c.has[specs.CgroupNamespace] {
			c.do(text, cMoveMount, c.groupTree(text, group, m), "", target, "", moveByFd)
			return
		}
		fs := c.newMountOr(text, "cgroup2", "cgroup", m.data, m.all())
		c.do(text, cMoveMount, fs, "", target, "", moveByFd)
		return
	}
	// As on the host: a directory for each hierarchy, and links for the
	// controllers that share one.
	dir := c.newMount(text, "tmpfs", "tmpfs", c.labelled("tmpfs", []string{"mode=755"}), m.all()&^unix.MOUNT_ATTR_RDONLY)
	c.do(text, cMoveMount, dir, "", target, "", moveByFd)
	for _, h := range v1 {
		c.mountHierarchy(dir, h, m)
	}
	if m.all()&unix.MOUNT_ATTR_RDONLY != 0 {
		c.do(text, cMountSetattr, dir, "", unix.AT_EMPTY_PATH, c.put(unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}))
	}
}

func (c *compiler) mountHierarchy(dir reg, h hierarchy, m *parsedMount) {
	text := m.text() + "/" + h.name
	c.do(text, cMkdirat, dir, h.name, 0o755)
	target := c.get(text, cOpenat2, dir, h.name, c.how(unix.O_PATH|unix.O_DIRECTORY, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS))
	var fs reg
	switch {
	case !c.has[specs.CgroupNamespace]:
		fs = c.groupTree(text, h.group, m)
	case h.name == "unified":
		fs = c.newMount(text, "cgroup2", "cgroup", nil, m.all())
	case h.name == "systemd":
		fs = c.newMount(text, "cgroup", "cgroup", []string{"none", "name=systemd"}, m.all())
	default:
		fs = c.newMount(text, "cgroup", "cgroup", strings.Split(h.name, ","), m.all())
	}
	c.do(text, cMoveMount, fs, "", target, "", moveByFd)
	if controllers := strings.Split(h.name, ","); len(controllers) > 1 {
		for _, name := range controllers {
			c.do(text, cSymlinkat, h.name, dir, name).passing(syscall.EEXIST)
		}
	}
}

// groupTree is a bind mount of the container's group, for a container that
// shares the host's cgroup namespace.
func (c *compiler) groupTree(text, group string, m *parsedMount) reg {
	return c.tree(slot{kind: slotTree, path: group, set: m.all(), propagation: unix.MS_PRIVATE, label: text})
}
