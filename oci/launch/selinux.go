package launch

import (
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// selinuxLabel gives the image that will be executed its label, and the session
// keyring that is made next: key objects have labels of their own.
func (c *compiler) selinuxLabel(makeKeyring func()) {
	label := c.proc.SelinuxLabel
	if label == "" {
		makeKeyring()
		return
	}
	c.writeAttr("process.selinuxLabel: set SELinux label "+label, "exec", label)
	const text = "process.selinuxLabel: label the session keyring"
	f := c.get(text, cOpenat, unix.AT_FDCWD, "/proc/self/attr/keycreate", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	c.ifElse(func() {
		c.do(text, cWrite, f, label, len(label))
		makeKeyring()
		c.do(text, cWrite, f, "\n", 1) // as it was: none
	}, makeKeyring, syscall.ENOENT) // a kernel without keys
}

// writeAttr writes a security attribute of the child through the host's procfs.
func (c *compiler) writeAttr(text, file, value string) {
	f := c.get(text, cOpenat, unix.AT_FDCWD, "/proc/self/attr/"+file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	c.do(text, cWrite, f, value, len(value))
}

// contextOptions are the options that give a file system labels. They come
// with the quotes that mount(8) needs for their commas.
var contextOptions = []string{"context=", "fscontext=", "defcontext=", "rootcontext="}

func isContextOption(o string) bool {
	for _, prefix := range contextOptions {
		if strings.HasPrefix(o, prefix) {
			return true
		}
	}
	return false
}

// labelled adds linux.mountLabel to the options of a new file system whose files
// have no labels of their own; one that has a label in its options keeps it.
func (c *compiler) labelled(typ string, data []string) []string {
	label := c.spec.Linux.MountLabel
	if label == "" || !takesContext(typ) {
		return data
	}
	for _, o := range data {
		if isContextOption(o) {
			return data
		}
	}
	return append(data[:len(data):len(data)], "context="+label)
}

// takesContext tells whether a file system is one of the container's own. The
// kernel's view of itself has labels by policy, and message queues, which exist
// before they are mounted, get theirs by labelMount.
func takesContext(typ string) bool {
	switch typ {
	case "proc", "sysfs", "cgroup", "cgroup2", "mqueue":
		return false
	}
	return true
}

// labelMount sets the label of a mount's root where the option cannot.
func (c *compiler) labelMount(text, typ string, fs reg) {
	label := c.spec.Linux.MountLabel
	if label == "" || typ != "mqueue" {
		return
	}
	text = "linux.mountLabel: " + text
	f := c.get(text, cOpenat, fs, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	c.do(text, cFsetxattr, f, "security.selinux", label, len(label)+1, 0) // with its NUL
	c.do(text, cClose, f)
}
