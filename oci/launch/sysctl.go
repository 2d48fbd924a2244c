package launch

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// sysctls are written through a procfs of our own, not by a path in which the
// container may have a say.
func (c *compiler) sysctls() {
	keys := make([]string, 0, len(c.spec.Linux.Sysctl))
	for k := range c.spec.Linux.Sysctl {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		file, ns, err := parseSysctl(k)
		if err != nil {
			c.fail(fmt.Errorf("linux.sysctl[%q]: %w", k, err))
			return
		}
		c.needs(ns, fmt.Sprintf("linux.sysctl[%q]", k))
		value, text := c.spec.Linux.Sysctl[k], "set sysctl "+k
		how := c.how(unix.O_WRONLY, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_SYMLINKS)
		f := c.get(text, cOpenat2, c.procfs(), "sys/"+file, how)
		c.do(text, cWrite, f, value, len(value))
	}
}

// parseSysctl returns the file below /proc/sys, and the namespace that a
// sysctl belongs to.
func parseSysctl(key string) (file string, ns specs.LinuxNamespaceType, err error) {
	file = key
	if dot, slash := strings.IndexByte(key, '.'), strings.IndexByte(key, '/'); dot >= 0 && (slash < 0 || dot < slash) {
		file = strings.NewReplacer(".", "/", "/", ".").Replace(key)
	}
	for _, part := range strings.Split(file, "/") {
		if part == "" || part == "." || part == ".." {
			return "", "", fmt.Errorf("is no name of a sysctl")
		}
	}
	switch {
	case strings.HasPrefix(file, "net/"):
		return file, specs.NetworkNamespace, nil
	case strings.HasPrefix(file, "fs/mqueue/"), slices.Contains(ipcSysctls, file):
		return file, specs.IPCNamespace, nil
	case file == "kernel/hostname", file == "kernel/domainname":
		return file, specs.UTSNamespace, nil
	case strings.HasPrefix(file, "user/"):
		return file, specs.UserNamespace, nil
	}
	return "", "", fmt.Errorf("is not of a namespace, so would change the host")
}

var ipcSysctls = []string{
	"kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/msg_next_id",
	"kernel/sem", "kernel/sem_next_id",
	"kernel/shmall", "kernel/shmmax", "kernel/shmmni", "kernel/shm_next_id", "kernel/shm_rmid_forced",
}

// procfs returns a procfs that is reachable through its descriptor alone: the
// one mounted for the container before anything was mounted over it, or one
// made for the purpose.
func (c *compiler) procfs() reg {
	if c.proc1 == none {
		const text = "make a private procfs"
		ctx := c.get(text, cFsopen, "proc")
		c.do(text, cFsconfigCreate, ctx)
		c.proc1 = c.get(text, cFsmount, ctx, 0)
	}
	return c.proc1
}
