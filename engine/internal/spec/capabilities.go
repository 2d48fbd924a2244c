package spec

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// defaultCapabilities are what a container has that asks for nothing: the set
// that Docker chose and containerd and CRI-O keep.
var defaultCapabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID",
	"CAP_KILL", "CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP",
	"CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// knownCapabilities are all of Linux 6.x, by number (linux/capability.h).
var knownCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID",
	"CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE",
	"CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
	"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
	"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE",
	"CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE",
	"CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// CapabilityNames names the capabilities of a bit mask, such as the bounding
// set in /proc/self/status.
func CapabilityNames(mask uint64) []string {
	var names []string
	for i, n := range knownCapabilities {
		if mask&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return names
}

// capabilities computes the five sets. Inheritable stays empty unless ambient
// capabilities are asked for, since programs that the process executes would
// otherwise gain what it was not meant to pass on (CVE-2022-24769).
func (in *Input) capabilities() (*specs.LinuxCapabilities, error) {
	sc := in.Config.GetLinux().GetSecurityContext()
	set := map[string]bool{}
	for _, c := range defaultCapabilities {
		set[c] = true
	}
	if sc.GetPrivileged() {
		for _, c := range in.Host.Capabilities {
			set[c] = true
		}
	}
	add, drop := sc.GetCapabilities().GetAddCapabilities(), sc.GetCapabilities().GetDropCapabilities()
	if hasAll(add) {
		for _, c := range in.Host.Capabilities {
			set[c] = true
		}
	}
	if hasAll(drop) {
		clear(set)
	}
	if err := eachCapability("add_capabilities", add, func(c string) { set[c] = true }); err != nil {
		return nil, err
	}
	if err := eachCapability("drop_capabilities", drop, func(c string) { delete(set, c) }); err != nil {
		return nil, err
	}
	var ambient []string
	err := eachCapability("add_ambient_capabilities", sc.GetCapabilities().GetAddAmbientCapabilities(), func(c string) {
		set[c] = true
		ambient = append(ambient, c)
	})
	if err != nil {
		return nil, err
	}
	caps := in.held(set, add)
	ambient = slices.DeleteFunc(ambient, func(c string) bool { return !slices.Contains(caps, c) })
	return &specs.LinuxCapabilities{
		Bounding: caps, Effective: caps, Permitted: caps,
		Inheritable: ambient, Ambient: ambient,
	}, nil
}

// held leaves what the host can give, in the order of their numbers, and warns
// of what was asked for by name and cannot be had.
func (in *Input) held(set map[string]bool, asked []string) []string {
	var caps []string
	for _, c := range knownCapabilities {
		switch {
		case !set[c]:
		case slices.Contains(in.Host.Capabilities, c):
			caps = append(caps, c)
		case slices.ContainsFunc(asked, func(a string) bool { return capabilityName(a) == c }):
			in.warn("capabilities.add_capabilities: this host cannot give " + c)
		}
	}
	return caps
}

func hasAll(list []string) bool {
	return slices.ContainsFunc(list, func(c string) bool { return strings.EqualFold(c, "ALL") })
}

func capabilityName(s string) string {
	s = strings.ToUpper(s)
	if !strings.HasPrefix(s, "CAP_") {
		s = "CAP_" + s
	}
	return s
}

func eachCapability(field string, list []string, do func(string)) error {
	for i, c := range list {
		if strings.EqualFold(c, "ALL") {
			continue
		}
		name := capabilityName(c)
		if !slices.Contains(knownCapabilities, name) {
			return invalid("%s: unknown capability %q", fmt.Sprintf("capabilities.%s[%d]", field, i), c)
		}
		do(name)
	}
	return nil
}
