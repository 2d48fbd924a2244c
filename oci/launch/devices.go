package launch

import (
	"fmt"
	"path"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// defaultDevices are in every container's /dev, as the specification has it.
var defaultDevices = []specs.LinuxDevice{
	{Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
	{Path: "/dev/zero", Type: "c", Major: 1, Minor: 5},
	{Path: "/dev/full", Type: "c", Major: 1, Minor: 7},
	{Path: "/dev/random", Type: "c", Major: 1, Minor: 8},
	{Path: "/dev/urandom", Type: "c", Major: 1, Minor: 9},
	{Path: "/dev/tty", Type: "c", Major: 5, Minor: 0},
}

var deviceLinks = [][2]string{
	{"/proc/self/fd", "fd"},
	{"/proc/self/fd/0", "stdin"},
	{"/proc/self/fd/1", "stdout"},
	{"/proc/self/fd/2", "stderr"},
	{"/proc/kcore", "core"},
}

// devices fills /dev, unless all of it is the host's. Everything is done
// through the descriptor of a directory that is no symbolic link of the image
// (CVE-2026-41579).
func (c *compiler) devices(mounts []parsedMount) {
	for i := range mounts {
		if mounts[i].bind && mounts[i].dest == "dev" {
			return
		}
	}
	dev := c.targetDir("dev", inRoot|unix.RESOLVE_NO_SYMLINKS)
	given := map[string]bool{}
	for i, d := range c.spec.Linux.Devices {
		d.Path = path.Clean(d.Path)
		given[d.Path] = true
		if err := checkDevice(d); err != nil {
			c.fail(fmt.Errorf("linux.devices[%d]%w", i, err))
			return
		}
		c.device(dev, d)
	}
	for _, d := range defaultDevices {
		if !given[d.Path] {
			c.device(dev, d)
		}
	}
	for _, l := range deviceLinks {
		c.do("link /dev/"+l[1], cSymlinkat, l[0], dev, l[1]).passing(syscall.EEXIST)
	}
	c.do("link /dev/ptmx", cUnlinkat, dev, "ptmx", 0).passing(syscall.ENOENT)
	c.do("link /dev/ptmx", cSymlinkat, "pts/ptmx", dev, "ptmx")
}

func checkDevice(d specs.LinuxDevice) error {
	if !path.IsAbs(d.Path) || d.Path == "/" {
		return fmt.Errorf(".path: %q is not absolute", d.Path)
	}
	switch d.Type {
	case "b", "c", "u", "p":
		return nil
	}
	return fmt.Errorf(".type: %q is not one of b, c, u, p", d.Type)
}

// device makes a node. A user namespace may not: there the host's node is
// bound instead.
func (c *compiler) device(dev reg, d specs.LinuxDevice) {
	text := "make device " + d.Path
	if (c.has[specs.UserNamespace] || c.opt.BindDevices) && d.Type != "p" {
		tree := c.tree(slot{kind: slotTree, path: d.Path, propagation: unix.MS_PRIVATE, label: text})
		target := c.target(strings.TrimPrefix(d.Path, "/"), tree)
		c.do(text, cMoveMount, tree, "", target, "", moveByFd)
		return
	}
	parent, name := dev, strings.TrimPrefix(d.Path, "/dev/")
	if path.Dir(d.Path) != "/dev" {
		parent, name = c.root, strings.TrimPrefix(d.Path, "/")
		if dir := path.Dir(name); dir != "." {
			parent = c.targetDir(dir, inRoot)
		}
		name = path.Base(name)
	}
	mode := uint32(0o666)
	if d.FileMode != nil {
		mode = uint32(d.FileMode.Perm())
	}
	format := map[string]uint32{"b": unix.S_IFBLK, "c": unix.S_IFCHR, "u": unix.S_IFCHR, "p": unix.S_IFIFO}[d.Type]
	number := unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	if d.Type == "p" {
		number = 0
	}
	c.do(text, cMknodat, parent, name, format|mode, number)
	c.orElse(func() { c.verifyDevice(text, parent, name, format, d) }, syscall.EEXIST)
	uid, gid := 0, 0
	if d.UID != nil {
		uid = int(*d.UID)
	}
	if d.GID != nil {
		gid = int(*d.GID)
	}
	if uid != 0 || gid != 0 {
		c.do(text, cFchownat, parent, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	}
}

// verifyDevice accepts an existing node only if it is what was to be made.
func (c *compiler) verifyDevice(text string, parent reg, name string, format uint32, d specs.LinuxDevice) {
	c.do(text, cStatx, parent, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE, c.scratch)
	c.test(c.scratch+statxMode, unix.S_IFMT, uint64(format), syscall.EEXIST).text = text
	if d.Type != "p" {
		number := uint64(d.Major) | uint64(d.Minor)<<32
		c.test(c.scratch+statxRdevMajor, ^uint64(0), number, syscall.EEXIST).text = text
	}
}

// hidePaths makes linux.maskedPaths unreadable and linux.readonlyPaths
// read-only. Missing ones are no error.
func (c *compiler) hidePaths() {
	l := c.spec.Linux
	for _, p := range l.ReadonlyPaths {
		c.readonlyPath(p)
	}
	if len(l.MaskedPaths) == 0 {
		return
	}
	null := c.verifiedNull()
	for _, p := range l.MaskedPaths {
		c.maskPath(p, null)
	}
}

// existing opens a path inside the root and runs body with it, if it is there.
func (c *compiler) existing(text, p string, body func(target reg)) {
	if !path.IsAbs(p) {
		c.fail(fmt.Errorf("%s: path is not absolute", text))
		return
	}
	rel := strings.TrimPrefix(path.Clean(p), "/")
	if rel == "" {
		c.fail(fmt.Errorf("%s: it is the root", text))
		return
	}
	r := c.newReg()
	c.do(text, cOpenat2, c.root, rel, c.how(unix.O_PATH, 0, inRoot)).out = uint16(r)
	c.andThen(func() { body(r) }, syscall.ENOENT, syscall.ENOTDIR)
}

func (c *compiler) readonlyPath(p string) {
	text := "make " + p + " read-only"
	c.existing(text, p, func(target reg) {
		tree := c.get(text, cOpenTree, target, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
		c.do(text, cMountSetattr, tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, c.put(unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}))
		c.do(text, cMoveMount, tree, "", target, "", moveByFd)
	})
}

// verifiedNull opens the container's /dev/null and makes sure that it is the
// real one: an image could have put something else there, and have it bound
// over the very path that was to be hidden (CVE-2025-31133).
func (c *compiler) verifiedNull() reg {
	const text = "verify /dev/null"
	r := c.get(text, cOpenat2, c.root, "dev/null", c.how(unix.O_PATH, 0, inRoot|unix.RESOLVE_NO_SYMLINKS))
	c.statx(text, r)
	c.test(c.scratch+statxMode, unix.S_IFMT, unix.S_IFCHR, syscall.ENODEV).text = text
	c.test(c.scratch+statxRdevMajor, ^uint64(0), 1|3<<32, syscall.ENODEV).text = text
	return r
}

// maskPath covers a directory with an empty read-only file system, a file with
// /dev/null.
func (c *compiler) maskPath(p string, null reg) {
	text := "mask " + p
	c.existing(text, p, func(target reg) {
		cover := c.newReg()
		c.statx(text, target)
		c.test(c.scratch+statxMode, unix.S_IFMT, unix.S_IFDIR, syscall.ENOTDIR)
		c.ifElse(func() {
			fs := c.newMount(text, "tmpfs", "tmpfs", c.labelled("tmpfs", []string{"nr_blocks=1", "nr_inodes=1"}), unix.MOUNT_ATTR_RDONLY)
			c.do(text, cMoveMount, fs, "", target, "", moveByFd)
		}, func() {
			c.do(text, cOpenTree, null, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH).out = uint16(cover)
			c.do(text, cMoveMount, cover, "", target, "", moveByFd)
		}, syscall.ENOTDIR)
	})
}
