package launch

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// How paths inside the container are resolved: as if the container's root were
// "/", following symbolic links of the image but not the kernel's magic ones.
const inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// moveByFd is for move_mount between two descriptors, with no path involved.
const moveByFd = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH

// parsedMount is a mount of the specification.
type parsedMount struct {
	mountOptions
	field string // "mounts[3]"
	dest  string // relative to the root
	typ   string
	src   string
	maps  *idMaps
	fs    reg          // the mount, once it is made, detached
	parts []reg        // of a cgroup v1 mount: its hierarchies
	of    *parsedMount // of a remount: what it changes
}

func (m *parsedMount) text() string { return "mount /" + m.dest }

// openRoot adds the slot of the root mount.
func (c *compiler) openRoot(opt Options) error {
	if o := opt.Rootfs; o != nil {
		s := slot{kind: slotOverlay, lower: o.Lower, upper: o.Upper, work: o.Work, label: "mount the root"}
		s.mountOptions = c.labelled("overlay", o.Options)
		if o.IDMapped {
			if s.idmap = c.userMaps(); s.idmap == nil {
				return fmt.Errorf("linux.uidMappings: an idmapped root needs uid and gid mappings")
			}
			if filepath.Dir(o.Upper) != filepath.Dir(o.Work) {
				return fmt.Errorf("upper directory %s and work directory %s of an idmapped root must have the same parent", o.Upper, o.Work)
			}
		}
		if o.Upper == "" {
			s.set = unix.MOUNT_ATTR_RDONLY
		}
		c.root = c.addSlot(s)
		return nil
	}
	if c.spec.Root == nil || c.spec.Root.Path == "" {
		return fmt.Errorf("root.path: is missing")
	}
	s := slot{
		kind: slotTree, path: inBundle(opt.Bundle, c.spec.Root.Path), flags: treeRecursive,
		propagation: unix.MS_PRIVATE, label: "open the root",
	}
	if opt.Unprivileged {
		c.root, c.rootTree = c.newReg(), &s
	} else {
		c.root = c.addSlot(s)
	}
	return nil
}

func inBundle(bundle, p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(bundle, p)
}

// parseMounts checks the mounts.
func (c *compiler) parseMounts(opt Options) ([]parsedMount, error) {
	list := make([]parsedMount, 0, len(c.spec.Mounts))
	for i, m := range c.spec.Mounts {
		p, err := c.parseMount(m, opt)
		p.field = fmt.Sprintf("mounts[%d]", i)
		if err == nil && p.remount {
			err = p.findMount(list)
		}
		if err != nil {
			return nil, fmt.Errorf("%s%w", p.field, err)
		}
		list = append(list, p)
	}
	return list, nil
}

func (c *compiler) parseMount(m specs.Mount, opt Options) (p parsedMount, err error) {
	if !path.IsAbs(m.Destination) {
		return p, fmt.Errorf(".destination: %q is not absolute", m.Destination)
	}
	p.mountOptions = parseMountOptions(m.Options)
	p.dest, p.typ, p.src = strings.TrimPrefix(path.Clean(m.Destination), "/"), m.Type, m.Source
	if p.dest == "" {
		return p, fmt.Errorf(".destination: the root cannot be mounted over")
	}
	if p.typ == "bind" {
		p.bind = true
	}
	if p.copyUp && (p.typ != "tmpfs" || p.bind || p.remount) {
		return p, fmt.Errorf(".options: tmpcopyup is for a new tmpfs")
	}
	if p.remount {
		if p.idmap || len(m.UIDMappings)+len(m.GIDMappings) > 0 || p.recursive {
			return p, fmt.Errorf(".options: a remount cannot be recursive or idmapped")
		}
		return p, nil
	}
	if err := c.parseIDMap(&p, m); err != nil {
		return p, err
	}
	if err := checkProcTarget(p); err != nil {
		return p, err
	}
	if !p.bind {
		if p.typ == "" {
			return p, fmt.Errorf(".type: is missing")
		}
		return p, nil
	}
	if m.Source == "" {
		return p, fmt.Errorf(".source: is missing")
	}
	return p, nil
}

// findMount looks for the mount that a remount changes. It has to be one of the
// container's: what the host has mounted is not its author's to change.
func (m *parsedMount) findMount(before []parsedMount) error {
	for i := len(before) - 1; i >= 0; i-- {
		b := &before[i]
		switch {
		case b.dest != m.dest || b.remount:
			continue
		case b.typ == "cgroup":
			return fmt.Errorf(".options: a cgroup mount cannot be remounted")
		case len(m.data) > 0 && (b.bind || m.bind):
			return fmt.Errorf(".options: a bind mount has no file system option %q", m.data[0])
		}
		m.of = b
		return nil
	}
	return fmt.Errorf(".options: remount: none of the mounts before is at /%s", m.dest)
}

// bindSlot describes the source of a bind mount. An "rw" does not lift the
// read-only of a source that the host has mounted so; an "rrw" does.
func (p *parsedMount) bindSlot(bundle string) slot {
	s := slot{
		kind: slotTree, path: inBundle(bundle, p.src), label: p.text(),
		set: p.set, clear: p.clear & atime, rset: p.rset, rclear: p.rclear,
		propagation: p.propagation, idmap: p.maps,
	}
	if p.ridmap {
		s.flags |= treeIdmapRecurses
	}
	if p.recursive {
		s.flags |= treeRecursive
	}
	switch {
	case p.propagation == 0:
		// What the host mounts below the source later appears in the
		// container, never the reverse.
		s.propagation, s.flags = unix.MS_SLAVE, s.flags|treePropagateRecurses
	case p.propagateRecurse:
		s.flags |= treePropagateRecurses
	}
	return s
}

// checkProcTarget refuses mounts inside /proc, with which a container's author
// could fake what runtimes and tools read there, but for files that are made
// to be replaced (LXCFS).
func checkProcTarget(p parsedMount) error {
	if !strings.HasPrefix(p.dest, "proc/") {
		return nil
	}
	if slices.Contains(replaceableProc, p.dest) {
		return nil
	}
	return fmt.Errorf(".destination: /%s is inside /proc", p.dest)
}

var replaceableProc = []string{
	"proc/cpuinfo", "proc/diskstats", "proc/meminfo", "proc/stat", "proc/swaps", "proc/uptime",
	"proc/loadavg", "proc/slabinfo", "proc/sys/kernel/ns_last_pid", "proc/net/dev",
	"proc/sys/crypto/fips_enabled",
}

// refuseProc fails if a symbolic link of the image has led a mount's destination
// into /proc, where checkProcTarget does not see it (CVE-2019-16884).
func (c *compiler) refuseProc(m *parsedMount, target reg) {
	if m.dest == "proc" || strings.HasPrefix(m.dest, "proc/") {
		return
	}
	text := "mount point /" + m.dest
	c.do(text, cFstatfs, target, c.scratch)
	c.test(c.scratch, ^uint64(0), unix.PROC_SUPER_MAGIC, syscall.EPERM)
	c.andThen(func() { c.do(text+" leads into /proc", cFail, syscall.EPERM).whole = true }, syscall.EPERM)
}

// makeMounts makes the mounts of the specification, in its order and detached. They
// have the order of the numbers that they get now, in which Linux lists them since
// 6.8, whenever they are attached.
func (c *compiler) makeMounts(mounts []parsedMount) {
	c.opens = c.mountsOnHost() || c.opt.Unprivileged
	defer func() { c.opens = c.opt.Unprivileged }()
	for i := range mounts {
		switch m := &mounts[i]; {
		case m.remount:
		case m.bind:
			if len(m.data) > 0 {
				c.do(fmt.Sprintf("%s.options: a bind mount has no file system option %q", m.field, m.data[0]), cWarn)
			}
			m.fs = c.tree(m.bindSlot(c.opt.Bundle))
		case m.typ == "cgroup":
			c.makeCgroup(m)
		default:
			c.makeMount(m)
		}
	}
}

// makeMount makes a mount of a new file system.
func (c *compiler) makeMount(m *parsedMount) {
	attr := m.all()
	if m.copyUp {
		attr &^= unix.MOUNT_ATTR_RDONLY // comes when it is filled
	}
	m.fs = c.newMountOr(m.text(), m.typ, m.src, c.labelled(m.typ, m.data), attr)
	c.labelMount(m.text(), m.typ, m.fs)
	switch {
	case m.typ == "proc" && m.dest == "proc":
		c.proc1 = m.fs
	case m.typ == "devpts" && m.dest == "dev/pts":
		c.pts = m.fs
	}
}

// attachRoot puts the root mount on top of "/" in the child's mount namespace.
// Only what is attached can be mounted onto.
func (c *compiler) attachRoot() {
	if c.sharesMounts() {
		c.attachSharedRoot()
		return
	}
	c.do("attach the root", cMoveMount, c.root, "", unix.AT_FDCWD, c.rootAt(), unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// rootAt is where the root is attached. Hooks that enter the mount namespace find
// the host's tree there, and the root, with its mounts, at its path.
func (c *compiler) rootAt() string {
	if c.hooksAt(PointCreated) && (c.opt.Rootfs == nil || !c.has[specs.UserNamespace]) {
		return inBundle(c.opt.Bundle, c.spec.Root.Path)
	}
	return "/"
}

// attach puts a mount where it belongs.
func (c *compiler) attach(m *parsedMount) {
	if m.remount {
		c.remount(m)
		return
	}
	if m.bind {
		target := c.target(m.dest, m.fs)
		c.refuseProc(m, target)
		c.do(m.text(), cMoveMount, m.fs, "", target, "", moveByFd)
		c.orElse(func() {
			c.do(m.text()+": invalid argument (one of source and destination is a directory, the other is not?)", cFail, syscall.EINVAL).whole = true
		}, syscall.EINVAL)
		return
	}
	target := c.targetDir(m.dest, m.resolve())
	c.refuseProc(m, target)
	if m.copyUp {
		c.copyUp(m, target)
	}
	c.do(m.text(), cMoveMount, m.fs, "", target, "", moveByFd)
	if m.typ == "cgroup" {
		c.attachHierarchies(m)
		return
	}
	c.propagate(m, m.fs)
}

// copyUp fills a tmpfs with what the image has at its mount point; the root of
// it gets the owner and the mode too, unless options say otherwise. The original
// is read through a mount with nothing in it that could do more than be read.
func (c *compiler) copyUp(m *parsedMount, target reg) {
	text := "copy /" + m.dest + " into its tmpfs"
	const harmless = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSYMFOLLOW
	from := c.get(text, cOpenTree, target, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	c.do(text, cMountSetattr, from, "", unix.AT_EMPTY_PATH, c.put(unix.MountAttr{Attr_set: harmless}))
	root := copyOwner | copyMode
	for _, o := range m.data {
		switch key, _, _ := strings.Cut(o, "="); key {
		case "mode":
			root &^= copyMode
		case "uid", "gid":
			root &^= copyOwner
		}
	}
	c.do(text, cCopyUp, from, m.fs, root)
	c.do(text, cClose, from)
	if m.all()&unix.MOUNT_ATTR_RDONLY != 0 {
		c.do(m.text(), cMountSetattr, m.fs, "", unix.AT_EMPTY_PATH, c.put(unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}))
	}
}

// remount changes a mount of the container's: its attributes that are named,
// the others stay; and with options of the file system that one's.
func (c *compiler) remount(m *parsedMount) {
	text, fs := "remount /"+m.dest, m.of.fs
	if len(m.data) > 0 {
		ctx := c.get(text, cFspick, fs, "")
		c.configure(text, ctx, m.data)
		c.do(text, cFsconfigReconfigure, ctx)
		c.do(text, cClose, ctx)
	}
	for _, change := range []struct {
		set, clear uint64
		recursive  int
	}{{m.rset, m.rclear, unix.AT_RECURSIVE}, {m.set, m.clear, 0}} {
		if change.set|change.clear != 0 {
			attr := c.put(unix.MountAttr{Attr_set: change.set, Attr_clr: change.clear})
			c.do(text, cMountSetattr, fs, "", unix.AT_EMPTY_PATH|change.recursive, attr)
		}
	}
	c.propagate(m, fs)
}

// resolve says how the destination is resolved: for /proc and /sys the image
// has no say (CVE-2019-19921, CVE-2023-27561).
func (m *parsedMount) resolve() uint64 {
	if m.typ == "proc" || m.typ == "sysfs" {
		return inRoot | unix.RESOLVE_NO_SYMLINKS
	}
	return inRoot
}

// newMount makes a detached mount of a new file system.
func (c *compiler) newMount(text, typ, src string, data []string, attr uint64) reg {
	ctx := c.get(text, cFsopen, typ)
	if src != "" && src != "none" {
		c.do(text, cFsconfigString, ctx, "source", src)
	}
	c.configure(text, ctx, data)
	c.do(text, cFsconfigCreate, ctx)
	return c.get(text, cFsmount, ctx, attr)
}

// configure gives the options of a file system.
func (c *compiler) configure(text string, ctx reg, data []string) {
	for _, o := range data {
		key, value, isString := strings.Cut(o, "=")
		what := text + ": option " + o
		if isContextOption(o) {
			value = strings.Trim(value, `"`)
			if value == c.spec.Linux.MountLabel {
				what = "linux.mountLabel: " + what
			}
		}
		if isString {
			c.do(what, cFsconfigString, ctx, key, value)
		} else {
			c.do(what, cFsconfigFlag, ctx, key)
		}
	}
}

// propagate sets the propagation of a new mount, which is private by itself.
func (c *compiler) propagate(m *parsedMount, fs reg) {
	if m.propagation != 0 {
		c.do(m.text()+": set propagation", cMountSetattr, fs, "", unix.AT_EMPTY_PATH, c.put(unix.MountAttr{Propagation: m.propagation}))
	}
}

// targetDir opens a directory inside the root, and makes it if it is missing.
func (c *compiler) targetDir(dest string, resolve uint64) reg {
	return c.get("make directory /"+dest, cMakePath, c.root, dest, unix.S_IFDIR|0o755, resolve)
}

// target opens the destination of a bind mount. If it is missing, it becomes a
// directory or an empty file, as the source is.
func (c *compiler) target(dest string, source reg) reg {
	text := "make mount point /" + dest
	r := c.newReg()
	c.statx(text, source)
	c.test(c.scratch+statxMode, unix.S_IFMT, unix.S_IFDIR, syscall.ENOTDIR)
	c.ifElse(func() {
		c.do(text, cMakePath, c.root, dest, unix.S_IFDIR|0o755, uint64(inRoot)).out = uint16(r)
	}, func() {
		c.do(text, cMakePath, c.root, dest, unix.S_IFREG|0o644, uint64(inRoot)).out = uint16(r)
	}, syscall.ENOTDIR)
	return r
}

// Offsets in struct statx.
const (
	statxMode      = 0x1c
	statxRdevMajor = 0x80
)

// statx reads what a descriptor is into scratch.
func (c *compiler) statx(text string, fd reg) {
	c.do(text, cStatx, fd, "", unix.AT_EMPTY_PATH, unix.STATX_TYPE, c.scratch)
}

// test compares 8 bytes of data under a mask.
func (c *compiler) test(at ref, mask, value uint64, errno syscall.Errno) *op {
	return c.do("", cTest, at, mask, value, errno)
}

// switchRoot makes the root mount the root, and lets the host's tree go.
func (c *compiler) switchRoot() {
	switch {
	case c.sharesMounts():
		c.do("enter the root", cFchdir, c.root)
		c.do("change root", cChroot, ".")
	case c.opt.NoPivot:
		c.chroot()
	default:
		c.do("enter the root", cFchdir, c.root)
		c.do("switch root", cPivotRoot, ".", ".")
		c.do("detach the host's mounts", cUmount, ".", unix.MNT_DETACH)
	}
	c.do("enter the root", cChdir, "/")
	attr := unix.MountAttr{}
	recursive := 0
	if p := c.spec.Linux.RootfsPropagation; p != "" {
		flag, ok := propagationOptions[strings.TrimPrefix(p, "r")]
		if _, exact := propagationOptions[p]; !exact {
			recursive = unix.AT_RECURSIVE
		}
		if !ok {
			c.fail(fmt.Errorf("linux.rootfsPropagation: %q is unknown", p))
		}
		attr.Propagation = flag
		c.do("set propagation of the root", cMountSetattr, c.root, "", unix.AT_EMPTY_PATH|recursive, c.put(attr))
	}
	if c.spec.Root != nil && c.spec.Root.Readonly {
		c.do("make the root read-only", cMountSetattr, c.root, "", unix.AT_EMPTY_PATH, c.put(unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}))
	}
}

// chroot is what is left where the root cannot be switched. The host's procfs
// and sysfs go before: they would allow new ones in user namespaces, whatever is
// masked in the container's own.
func (c *compiler) chroot() {
	for _, dir := range []string{"/proc", "/sys"} {
		c.do("detach the host's "+dir, cUmount, dir, unix.MNT_DETACH)
		c.orElse(func() {
			c.do("cover the host's "+dir, cMount, "tmpfs", dir, "tmpfs", 0, nil).passing(syscall.ENOENT)
		}, syscall.EINVAL, syscall.ENOENT)
	}
	if c.rootAt() != "/" {
		c.do("attach the root", cMoveMount, c.root, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	c.do("enter the root", cFchdir, c.root)
	c.do("change root", cChroot, ".")
}

// makeCwd makes the working directory if the image has none.
func (c *compiler) makeCwd() {
	if cwd := strings.TrimPrefix(path.Clean(c.proc.Cwd), "/"); cwd != "" {
		c.do("make working directory "+c.proc.Cwd, cMakePath, c.root, cwd, unix.S_IFDIR|0o755, uint64(inRoot))
	}
}
