package launch

import (
	"fmt"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// execFlags are the namespaces that setns joins by a pidfd; the pid namespace
// is joined at birth.
const execFlags = namespaceFlags &^ unix.CLONE_NEWPID

// exec compiles a process in a running container.
func (c *compiler) exec(opt ExecOptions) (*Program, error) {
	if opt.Pid <= 0 {
		return nil, fmt.Errorf("launch %s: no process to join", opt.ID)
	}
	c.into = true
	flags := uint64(unix.CLONE_NEWNS)
	for _, ns := range c.spec.Linux.Namespaces {
		f, ok := namespaceFlag[ns.Type]
		if !ok {
			return nil, fmt.Errorf("linux.namespaces: %q is not supported", ns.Type)
		}
		c.has[ns.Type] = true
		flags |= f
		if ns.Path == "" {
			c.new |= f & unix.CLONE_NEWNS // none is made: it says what sharesMounts asks for
		}
	}
	if host, ok := hostID(c.spec.Linux.UIDMappings, c.proc.User.UID); ok {
		c.p.owner = host
	}
	target := c.addSlot(slot{kind: slotPidfd, path: strconv.Itoa(opt.Pid), label: "join process " + strconv.Itoa(opt.Pid)})
	c.opt.Unprivileged = opt.Unprivileged
	if c.has[specs.PIDNamespace] && !opt.Unprivileged {
		c.p.pidns = int(target)
	}
	root := none // that of the mount namespace, but for containers that share one
	if c.sharesMounts() {
		root = c.addSlot(slot{kind: slotFile, path: "/proc/" + strconv.Itoa(opt.Pid) + "/root", flags: unix.O_PATH | unix.O_DIRECTORY, target: true, label: "open the container's root"})
	}
	if a := c.proc.ExecCPUAffinity; a != nil {
		c.affinity("initial", a.Initial)
	}
	c.enterHostSide(opt.CgroupJoin, opt.CgroupDir)
	if a := c.proc.ExecCPUAffinity; a != nil {
		c.affinity("final", a.Final)
	}
	if opt.Unprivileged {
		c.joinUnprivileged(target, flags)
	} else {
		c.do(joinStep, cSetns, target, flags&execFlags)
	}
	if root != none {
		c.do("enter the container's root", cFchdir, root)
		c.do("enter the container's root", cChroot, ".")
	}
	if c.has[specs.UserNamespace] {
		c.do("become root of the user namespace", cSetresgid, 0, 0, 0)
		c.do("become root of the user namespace", cSetresuid, 0, 0, 0)
	}
	c.execTerminal()
	c.finalize()
	return c.finish()
}
