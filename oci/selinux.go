package oci

import (
	"os"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// withoutMountLabel drops linux.mountLabel, with a warning, where the kernel has
// no SELinux: no file has a label there. process.selinuxLabel stays, and is an error
// then, as who gives it asks for a confinement that there would not be
// (docs/decisions/0032-labels-without-selinux.md).
func (c *container) withoutMountLabel(l *specs.Linux) *specs.Linux {
	if l.MountLabel == "" || hasSELinux() {
		return l
	}
	c.runtime.Log.Warn("passed over", "container", c.ID, "step", "linux.mountLabel: the kernel has no SELinux")
	plain := *l
	plain.MountLabel = ""
	return &plain
}

// hasSELinux tells whether the kernel has SELinux, and was not told at boot to do
// without, whether or not its file system is mounted. What cannot be known counts
// as SELinux.
func hasSELinux() bool {
	b, err := os.ReadFile("/proc/filesystems")
	return err != nil || slices.Contains(strings.Fields(string(b)), "selinuxfs")
}
