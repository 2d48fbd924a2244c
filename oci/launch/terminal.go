package launch

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

const devptsMagic = unix.DEVPTS_SUPER_MAGIC

// terminal makes the pty of a container's first process in the container's own
// devpts, never touching it by a path (CVE-2025-52565), sends its master to
// the forker and makes it /dev/console.
func (c *compiler) terminal() {
	c.do("start a session", cSetsid)
	if !c.proc.Terminal {
		return
	}
	if c.pts == none {
		c.fail(fmt.Errorf("process.terminal: needs a devpts mount at /dev/pts"))
		return
	}
	c.p.terminal = true
	master := c.get("open a pty", cOpenat, c.pts, "ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	slave := c.openSlave(master)
	const text = "bind /dev/console"
	dev := c.get(text, cOpenat2, c.root, "dev", c.how(unix.O_PATH|unix.O_DIRECTORY, 0, inRoot|unix.RESOLVE_NO_SYMLINKS))
	c.do(text, cMknodat, dev, "console", unix.S_IFREG|0o600, 0).passing(syscall.EEXIST)
	target := c.get(text, cOpenat2, dev, "console", c.how(unix.O_PATH, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS))
	tree := c.get(text, cOpenTree, slave, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	c.do(text, cMoveMount, tree, "", target, "", moveByFd)
}

// openSlave opens the other end of a pty, makes it the controlling terminal
// and stdio, and sends the master to the forker.
func (c *compiler) openSlave(master reg) (slave reg) {
	c.do("unlock the pty", cUnlockPty, master, c.put(uint64(0)))
	slave = c.get("open the pty's terminal", cOpenPtyPeer, master, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if b := c.proc.ConsoleSize; b != nil {
		if b.Height > 0xffff || b.Width > 0xffff {
			c.fail(fmt.Errorf("process.consoleSize: %d×%d is too large", b.Width, b.Height))
		}
		size := c.put(unix.Winsize{Row: uint16(b.Height), Col: uint16(b.Width)})
		c.do("set the console's size", cSetWindowSize, master, size)
	}
	if uid := c.proc.User.UID; uid != 0 {
		c.do("give the terminal to the user", cFchown, slave, uid, -1)
	}
	c.do("set the controlling terminal", cSetControllingTTY, slave, 0)
	for fd := range 3 {
		c.do("set up stdio", cDup2, slave, fd, 0)
	}
	c.do("send the console", cConsole, master)
	return slave
}

// execTerminal makes the pty of an exec'd process. The container's processes
// may have changed what is at /dev/pts: it must be a devpts, whose ptmx no one
// can replace.
func (c *compiler) execTerminal() {
	c.do("start a session", cSetsid)
	if !c.proc.Terminal {
		return
	}
	c.p.terminal = true
	const text = "open the container's /dev/pts"
	how := c.how(unix.O_PATH|unix.O_DIRECTORY, 0, unix.RESOLVE_NO_MAGICLINKS|unix.RESOLVE_NO_SYMLINKS)
	pts := c.get(text, cOpenat2, unix.AT_FDCWD, "/dev/pts", how)
	c.do(text, cFstatfs, pts, c.scratch)
	c.test(c.scratch, ^uint64(0), devptsMagic, syscall.ENODEV).text = text
	master := c.get("open a pty", cOpenat2, pts, "ptmx", c.how(unix.O_RDWR|unix.O_NOCTTY, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_SYMLINKS))
	c.openSlave(master)
}
