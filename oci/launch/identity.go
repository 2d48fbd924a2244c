package launch

import (
	"fmt"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/oci/seccomp"
)

// finalize turns the prepared child into the container's process: limits,
// then privileges, then the wait for its start, then execve.
//
// The seccomp filter is installed as late as can be, so that it need not allow
// what comes before. Without no_new_privs that takes CAP_SYS_ADMIN, and
// privileges are dropped after it: such a filter must allow the calls that do.
func (c *compiler) finalize() {
	c.resources()
	filter := c.filter()
	early := c.proc.NoNewPrivileges || filter == nil
	if early {
		c.enterWorkingDirectory()
		c.identity()
		c.retryWorkingDirectory()
	}
	if c.proc.NoNewPrivileges {
		c.do("set no_new_privs", cSetNoNewPrivs, 1)
	}
	c.chooseExecutable()
	c.do("reset signals", cSignals)
	c.do("close descriptors", cCloseAll, 0)
	c.do("wait for the start", cPrepared)
	c.point(PointStart)
	if early {
		c.do("prepare to execute", cExecuting)
		c.install(filter)
	} else {
		c.enterWorkingDirectory()
		c.install(filter)
		c.identity()
		c.retryWorkingDirectory()
		c.do("prepare to execute", cExecuting)
	}
	c.execute()
}

// filter compiles the seccomp profile.
func (c *compiler) filter() *seccomp.Filter {
	if c.spec.Linux.Seccomp == nil {
		return nil
	}
	if c.spec.Linux.Seccomp.ListenerPath != "" && !c.opt.Listener {
		c.fail(fmt.Errorf("linux.seccomp.listenerPath: not supported"))
		return nil
	}
	if c.opt.Filter != nil {
		return c.opt.Filter
	}
	f, err := seccomp.Compile(c.spec.Linux.Seccomp)
	if err != nil {
		c.fail(fmt.Errorf("linux.seccomp%w", err))
		return nil
	}
	return f
}

func (c *compiler) install(f *seccomp.Filter) {
	if f == nil || len(f.Instructions) == 0 {
		return
	}
	prog := c.put(f.Instructions)
	fprog := c.put([2]uint64{uint64(len(f.Instructions)), 0})
	c.pointer(fprog+8, prog)
	const text = "install the seccomp filter"
	if !f.Notify {
		c.do(text, cSeccomp, uint64(f.Flags), fprog)
		return
	}
	listener := c.get(text, cSeccomp, uint64(f.Flags), fprog)
	c.do("hand over the seccomp listener", cListener, listener)
}

// resources sets what has nothing to do with privileges.
func (c *compiler) resources() {
	umask := uint32(0o022)
	if u := c.proc.User.Umask; u != nil {
		umask = *u
	}
	c.do("set umask", cUmask, umask)
	c.scheduler()
	c.personality()
	c.do("restore the limit of open files", cFileLimit)
	c.rlimits()
}

// rlimits come late: a low one could stop the preparation itself. They come
// before privileges are dropped: raising a hard limit takes one.
func (c *compiler) rlimits() {
	for i, r := range c.proc.Rlimits {
		field := fmt.Sprintf("process.rlimits[%d]", i)
		resource, ok := rlimitNumbers[r.Type]
		if !ok {
			c.fail(fmt.Errorf("%s.type: %q is unknown", field, r.Type))
			return
		}
		if r.Soft > r.Hard {
			c.fail(fmt.Errorf("%s.soft: %d is above the hard limit %d", field, r.Soft, r.Hard))
			return
		}
		text := fmt.Sprintf("%s: set %s to %d:%d", field, r.Type, r.Soft, r.Hard)
		if c.new&unix.CLONE_NEWUSER != 0 && !c.opt.Unprivileged {
			c.p.parent = append(c.p.parent, parentStep{label: text, resource: resource, soft: r.Soft, hard: r.Hard})
			continue
		}
		c.do(text, cPrlimit, resource, c.put(unix.Rlimit{Cur: r.Soft, Max: r.Hard}))
	}
}

var rlimitNumbers = map[string]int{
	"RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4,
	"RLIMIT_RSS": 5, "RLIMIT_NPROC": 6, "RLIMIT_NOFILE": 7, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9,
	"RLIMIT_LOCKS": 10, "RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13,
	"RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
}

// identity takes on the user, the groups and the capabilities.
func (c *compiler) identity() {
	sets, err := parseCapabilities(c.proc.Capabilities)
	if err != nil {
		c.fail(fmt.Errorf("process.capabilities.%w", err))
		return
	}
	if drop := (uint64(1)<<numCapabilities - 1) &^ sets.bounding; drop != 0 {
		c.do("drop capabilities from the bounding set", cDropBounding, drop)
	}
	c.do("keep capabilities", cSetKeepcaps, 1)
	u := c.proc.User
	groups := c.space(4 * len(u.AdditionalGids))
	for i, g := range u.AdditionalGids {
		putUint32(c.p.data[int(groups)+4*i:], g)
	}
	if len(u.AdditionalGids) == 0 {
		// A user namespace may forbid it, and then there are none anyway.
		c.do("set groups", cSetgroups, 0, nil).passing(syscall.EPERM)
	} else {
		c.do("set groups", cSetgroups, len(u.AdditionalGids), groups)
	}
	c.do(fmt.Sprintf("set gid %d", u.GID), cSetresgid, u.GID, u.GID, u.GID)
	c.do(fmt.Sprintf("set uid %d", u.UID), cSetresuid, u.UID, u.UID, u.UID)
	c.do("forget to keep capabilities", cSetKeepcaps, 0)
	c.capabilities(sets)
	// A change of credentials sets it to what fs.suid_dumpable says.
	c.do("stay undumpable", cSetDumpable, 0)
}

// capabilities sets the sets. What the child does not have itself (the host
// may run with a smaller bounding set) cannot be given and is left out.
func (c *compiler) capabilities(s capabilitySets) {
	header := c.put([2]uint32{unix.LINUX_CAPABILITY_VERSION_3, 0})
	have := c.space(24)
	want := c.put([6]uint32{
		uint32(s.effective), uint32(s.permitted), uint32(s.inheritable),
		uint32(s.effective >> 32), uint32(s.permitted >> 32), uint32(s.inheritable >> 32),
	})
	c.do("get capabilities", cCapget, header, have)
	c.do("limit capabilities", cLimitCaps, want, have)
	c.do("set capabilities", cCapset, header, want)
	c.do("clear ambient capabilities", cClearAmbient).passing(syscall.EINVAL)
	for n := range numCapabilities {
		if s.ambient&(1<<n) != 0 {
			c.do("set ambient "+capabilityNames[n], cRaiseAmbient, n).passing(syscall.EPERM, syscall.EINVAL)
		}
	}
}

type capabilitySets struct{ bounding, effective, inheritable, permitted, ambient uint64 }

func parseCapabilities(l *specs.LinuxCapabilities) (s capabilitySets, err error) {
	if l == nil {
		return s, nil
	}
	for _, set := range []struct {
		field string
		names []string
		to    *uint64
	}{
		{"bounding", l.Bounding, &s.bounding},
		{"effective", l.Effective, &s.effective},
		{"inheritable", l.Inheritable, &s.inheritable},
		{"permitted", l.Permitted, &s.permitted},
		{"ambient", l.Ambient, &s.ambient},
	} {
		for i, name := range set.names {
			n, ok := capabilityNumber(name)
			if !ok {
				return s, fmt.Errorf("%s[%d]: %q is unknown", set.field, i, name)
			}
			*set.to |= 1 << n
		}
	}
	return s, nil
}

// enterWorkingDirectory enters process.cwd, as long as the child is root, who may
// be allowed to what the container's user is not. A directory outside of the root,
// as a leaked descriptor would give, is recognised by getcwd (CVE-2024-21626).
func (c *compiler) enterWorkingDirectory() {
	text := "change to working directory " + c.proc.Cwd
	c.do(text, cChdir, c.proc.Cwd)
	c.ifElse(c.checkWorkingDirectory, func() { c.cwdFailed = c.get(text, cSet, 1) }, syscall.EACCES)
}

// retryWorkingDirectory is for what root is not allowed to, and the container's
// user is (NFS).
func (c *compiler) retryWorkingDirectory() {
	text := "change to working directory " + c.proc.Cwd
	c.do(text, cTestReg, c.cwdFailed, 1, syscall.ENOENT)
	c.andThen(func() {
		c.do(text, cChdir, c.proc.Cwd)
		c.checkWorkingDirectory()
	}, syscall.ENOENT)
}

func (c *compiler) checkWorkingDirectory() {
	const pathMax = 4096
	text := "change to working directory " + c.proc.Cwd
	if c.cwd == 0 {
		c.cwd = c.space(pathMax)
	}
	c.do(text, cGetcwd, c.cwd, pathMax)
	c.test(c.cwd, 0xff, '/', syscall.ENOENT).text = text
}
