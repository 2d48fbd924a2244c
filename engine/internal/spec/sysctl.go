package spec

import (
	"regexp"
	"strings"
)

// sysctlKey is what Kubernetes takes for a sysctl's name; parts are separated
// by dots, or by slashes where a part (an interface) has dots of its own.
var sysctlKey = regexp.MustCompile(`^[a-z0-9]([-_a-zA-Z0-9]*[a-zA-Z0-9])?([./][a-zA-Z0-9]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?)*$`)

// ipcSysctls belong to the IPC namespace.
var ipcSysctls = []string{"kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."}

// CheckSysctls refuses keys that are not of a namespace that the pod has for
// its own, and values that could be more than a value (CVE-2022-0811).
func CheckSysctls(sysctls map[string]string, ownNetwork, ownIPC bool) error {
	for key, value := range sysctls {
		if !sysctlKey.MatchString(key) {
			return invalid("linux.sysctls: %q is not the name of a sysctl", key)
		}
		if strings.ContainsFunc(value, func(r rune) bool { return isControl(r) && r != '\t' }) || value == "" {
			return invalid("linux.sysctls: value %q of %s is empty or has control characters", value, key)
		}
		name := normalSysctl(key)
		switch {
		case strings.HasPrefix(name, "net."):
			if !ownNetwork {
				return invalid("linux.sysctls: %s is the host's: the pod has no network namespace of its own", key)
			}
		case hasAnyPrefix(name, ipcSysctls):
			if !ownIPC {
				return invalid("linux.sysctls: %s is the host's: the pod has no IPC namespace of its own", key)
			}
		default:
			return invalid("linux.sysctls: %s does not belong to a namespace", key)
		}
	}
	return nil
}

func hasAnyPrefix(s string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

// normalSysctl writes a key with dots between its parts if the first separator
// was a slash.
func normalSysctl(key string) string {
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '/' {
		return strings.ReplaceAll(key, "/", ".")
	}
	return key
}

// SysctlPath is the file of a checked key below /proc/sys. In "net/ipv4/conf/
// eth0.100/forwarding" the dots are the interface's own.
func SysctlPath(key string) string {
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		// As sysctl(8): with dots as separators, a slash stands for a dot.
		return strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, key)
	}
	return key
}
