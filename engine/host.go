package engine

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"podstead/cgroup"
	"podstead/engine/internal/selinux"
	"podstead/engine/internal/spec"
	"podstead/engine/internal/tree"
)

// host is what the machine offers, found once at start.
type host struct {
	spec spec.Host
	name string
	// userNamespaces tells whether pods can have them, idmapped overlay layers
	// included (Linux 5.19).
	userNamespaces bool
}

func probeHost(h *cgroup.Hierarchy) (host, error) {
	caps, err := boundingSet()
	if err != nil {
		return host{}, err
	}
	name, err := os.Hostname()
	if err != nil {
		return host{}, err
	}
	return host{name: name, userNamespaces: hasUserNamespaces(), spec: spec.Host{
		SystemdCgroups:    h.Driven(),
		Capabilities:      caps,
		RecursiveReadOnly: tree.HasMountSetattr(),
		SELinux:           selinux.Enabled(),
		AppArmor:          readsYes("/sys/module/apparmor/parameters/enabled"),
		CgroupUnified:     h.Unified(),
		MountPropagation:  mountPropagation,
		LoadedAppArmor:    loadedAppArmor,
		DefaultAppArmor:   defaultAppArmor(),
	}}, nil
}

// boundingSet reads which capabilities this process can pass on. A constant
// list would ask for some that the host, itself perhaps a container, has not.
func boundingSet() ([]string, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			if err != nil {
				return nil, fmt.Errorf("/proc/self/status: CapBnd: %w", err)
			}
			return spec.CapabilityNames(mask), nil
		}
	}
	return nil, errors.New("/proc/self/status: no CapBnd")
}

// hasUserNamespaces asks for the kernel's version, since idmapped layers of an
// overlay can be tried with one mounted only.
func hasUserNamespaces() bool {
	b, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	if n, perr := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || perr != nil || n == 0 {
		return false
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false
	}
	var major, minor int
	fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return major > 5 || major == 5 && minor >= 19
}

func readsYes(file string) bool {
	b, err := os.ReadFile(file)
	return err == nil && strings.TrimSpace(string(b)) == "Y"
}

// mountPropagation tells how the mount that holds path propagates.
func mountPropagation(path string) spec.Propagation {
	infos, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil {
		return spec.PropagationPrivate
	}
	best, p := -1, spec.PropagationPrivate
	for _, m := range infos {
		if len(m.Mountpoint) < best { // the last of the deepest hides the others
			continue
		}
		best, p = len(m.Mountpoint), spec.PropagationPrivate
		for _, o := range strings.Fields(m.Optional) {
			switch {
			case strings.HasPrefix(o, "shared:"):
				p = spec.PropagationShared
			case strings.HasPrefix(o, "master:") && p == spec.PropagationPrivate:
				p = spec.PropagationSlave
			}
		}
	}
	return p
}

// readBootID identifies this run of the kernel.
func readBootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(b)), nil
}
