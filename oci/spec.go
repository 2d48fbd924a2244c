package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
)

// exampleCapabilities are those that "spec" gives.
var exampleCapabilities = []string{"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"}

// ExampleSpec is a specification to start from: a shell in a root file system
// of its own, with little privilege.
func ExampleSpec() *specs.Spec {
	caps := &specs.LinuxCapabilities{Bounding: exampleCapabilities, Effective: exampleCapabilities, Permitted: exampleCapabilities}
	return &specs.Spec{
		Version: Version,
		Root:    &specs.Root{Path: "rootfs", Readonly: true},
		Process: &specs.Process{
			Terminal:        true,
			Args:            []string{"sh"},
			Env:             []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"},
			Cwd:             "/",
			NoNewPrivileges: true,
			Capabilities:    caps,
			Rlimits:         []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
		},
		Hostname: "podstead",
		Mounts:   exampleMounts(),
		Linux: &specs.Linux{
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace},
			},
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

func exampleMounts() []specs.Mount {
	safe := func(more ...string) []string { return append([]string{"nosuid", "noexec"}, more...) }
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: safe("newinstance", "ptmxmode=0666", "mode=0620", "gid=5")},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: safe("nodev", "mode=1777", "size=65536k")},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: safe("nodev")},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: safe("nodev", "ro")},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: safe("nodev", "relatime", "ro")},
	}
}

// makeRootless makes it one that the caller can run without privilege: in a user
// namespace with one user, on the host's network, whose sysfs is bound.
func makeRootless(s *specs.Spec) {
	s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: uint32(os.Geteuid()), Size: 1}}
	s.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: uint32(os.Getegid()), Size: 1}}
	s.Linux.Resources = nil
	s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/sys/fs/cgroup" })
	for i := range s.Mounts {
		m := &s.Mounts[i]
		m.Options = slices.DeleteFunc(m.Options, func(o string) bool { return o == "gid=5" }) // there is no such group
		if m.Destination == "/sys" {
			*m = specs.Mount{Destination: "/sys", Type: "none", Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", "ro"}}
		}
	}
}

func specCommand(*cli) *cobra.Command {
	var bundle string
	var rootless bool
	cmd := &cobra.Command{
		Use:   "spec",
		Short: "Write a config.json to start from",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			spec := ExampleSpec()
			if rootless {
				makeRootless(spec)
			}
			b, err := json.MarshalIndent(spec, "", "\t")
			if err != nil {
				return err
			}
			file := filepath.Join(bundle, specFile)
			f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
			if errors.Is(err, os.ErrExist) {
				return fmt.Errorf("%s exists: remove it first", file)
			}
			if err != nil {
				return err
			}
			_, err = f.Write(append(b, '\n'))
			return errors.Join(err, f.Close())
		},
	}
	cmd.Flags().StringVarP(&bundle, "bundle", "b", "", "directory of the bundle (default: the current one)")
	cmd.Flags().BoolVar(&rootless, "rootless", false, "for a user who is not root")
	return cmd
}
