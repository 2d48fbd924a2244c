package oci

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Without root's privilege on the host there are two cases. A user who has none
// runs containers in user namespaces of theirs; whoever is root of a user
// namespace already, as podman makes itself, may mount, but makes no device nodes.
// In both, a control group is where somebody has delegated one, or nowhere.

// privilege is what the process may do on the host.
type privilege int

const (
	privileged   privilege = iota
	nestedRoot             // root of a user namespace
	unprivileged           // a user
)

// detectPrivilege follows --rootless: auto, true or false.
func detectPrivilege(flag string) (privilege, error) {
	now := privileged
	if os.Geteuid() != 0 {
		now = unprivileged
	} else if b, err := os.ReadFile("/proc/self/uid_map"); err == nil {
		if f := strings.Fields(string(b)); len(f) != 3 || f[0] != "0" || f[1] != "0" || f[2] != "4294967295" {
			now = nestedRoot
		}
	}
	switch flag {
	case "auto":
		return now, nil
	case "true":
		return max(now, nestedRoot), nil
	case "false":
		if now == unprivileged {
			return now, errors.New("--rootless false: this is not root")
		}
		return privileged, nil
	}
	return now, fmt.Errorf("--rootless: %q is none of auto, true, false", flag)
}

// defaultRootOf is where containers are kept unless --root says otherwise.
func defaultRootOf(p privilege) (string, error) {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	switch {
	case p == privileged, p == nestedRoot && dir == "":
		return defaultRoot, nil
	case dir == "":
		return "", errors.New("--root: neither it nor XDG_RUNTIME_DIR is set")
	}
	return filepath.Join(dir, "podstead-oci"), nil
}

// checkRootless names what only root can do, before anything is done.
func (c *container) checkRootless(spec *specs.Spec) error {
	if c.runtime.privilege != unprivileged {
		return nil
	}
	own := false
	for _, n := range spec.Linux.Namespaces {
		own = own || n.Type == specs.UserNamespace
	}
	switch {
	case !own:
		return errors.New("linux.namespaces: a user who is not root needs a user namespace for a container")
	case len(spec.Linux.NetDevices) > 0:
		return errors.New("linux.netDevices: only root can move network devices")
	case len(spec.Process.User.AdditionalGids) > 0 && len(spec.Linux.GIDMappings) == 1 && spec.Linux.GIDMappings[0].Size == 1:
		return errors.New("process.user.additionalGids: a user who has one group cannot have more in a container")
	}
	return nil
}

// writeMaps writes the id maps of a process's user namespace: one's own user and
// group oneself, others by the programs that know who may have them.
func writeMaps(pid int, uid, gid string) error {
	dir := "/proc/" + strconv.Itoa(pid) + "/"
	for _, m := range []struct {
		field, file, program, lines string
		own                         int
	}{
		{"linux.uidMappings", "uid_map", "newuidmap", uid, os.Geteuid()},
		{"linux.gidMappings", "gid_map", "newgidmap", gid, os.Getegid()},
	} {
		f := strings.Fields(m.lines)
		if len(f) == 3 && f[1] == strconv.Itoa(m.own) && f[2] == "1" {
			if m.file == "gid_map" { // or a group could be dropped that is there to forbid
				if err := os.WriteFile(dir+"setgroups", []byte("deny"), 0); err != nil {
					return fmt.Errorf("%s: %w", m.field, err)
				}
			}
			if err := os.WriteFile(dir+m.file, []byte(m.lines), 0); err != nil {
				return fmt.Errorf("%s: %w", m.field, err)
			}
			continue
		}
		program, err := exec.LookPath(m.program)
		if err != nil {
			return fmt.Errorf("%s: more than one's own id takes %s: %w", m.field, m.program, errors.Unwrap(err))
		}
		out, err := exec.Command(program, append([]string{strconv.Itoa(pid)}, f...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %s: %w: %s", m.field, m.program, err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// delegatedGroups are paths for a control group where a user may have the right to
// make one: beside the group that we are in, or below. A group with processes can
// have children, but not limit them.
func (c *container) delegatedGroups() []string {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil || !c.runtime.Cgroups.Unified() {
		return nil
	}
	own, ok := strings.CutPrefix(strings.TrimSpace(string(b)), "0::")
	if !ok {
		return nil
	}
	name := "podstead-oci-" + c.ID
	return []string{path.Join(path.Dir(own), name), path.Join(own, name)}
}

// claimDelegatedGroup makes the control group where we may, and else does without:
// what then cannot be limited is named in a warning.
func (c *container) claimDelegatedGroup(spec *specs.Spec) error {
	paths := []string{c.Cgroup}
	if spec.Linux.CgroupsPath == "" && !c.Systemd {
		paths = c.delegatedGroups()
	}
	err := error(fs.ErrPermission)
	for _, p := range paths {
		c.Cgroup = p
		if err = c.claimGroup(); err == nil {
			return c.save()
		}
		if !errors.Is(err, fs.ErrPermission) && !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	c.Cgroup, c.Systemd, c.groups = "", false, nil
	if serr := c.save(); serr != nil {
		return serr
	}
	for _, field := range limited(spec.Linux.Resources) {
		c.runtime.Log.Warn("no control group: not limited", "container", c.ID, "field", "linux.resources."+field, "error", err)
	}
	return nil
}

// limited names the limits that a specification asks for.
func limited(r *specs.LinuxResources) (fields []string) {
	if r == nil {
		return nil
	}
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"memory", r.Memory != nil && *r.Memory != (specs.LinuxMemory{})}, {"cpu", r.CPU != nil && *r.CPU != (specs.LinuxCPU{})},
		{"pids", r.Pids != nil && r.Pids.Limit != nil}, {"blockIO", r.BlockIO != nil}, {"hugepageLimits", len(r.HugepageLimits) > 0},
		{"network", r.Network != nil}, {"rdma", len(r.Rdma) > 0}, {"unified", len(r.Unified) > 0},
	} {
		if f.set {
			fields = append(fields, f.name)
		}
	}
	return fields
}

// hasGroup tells whether the container has a control group: one of a user who may
// make none does without.
func (c *container) hasGroup() bool { return c.Cgroup != "" }

// mapIDs is how the id maps of a new user namespace are written.
func (r *Runtime) mapIDs() func(pid int, uid, gid string) error {
	if r.privilege == unprivileged {
		return writeMaps
	}
	return nil
}
