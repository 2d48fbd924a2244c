package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

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

func specCommand() *cobra.Command {
	var bundle string
	var rootless bool
	cmd := &cobra.Command{
		Use:   "spec",
		Short: "Write a config.json to start from",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if rootless {
				return errors.New("--rootless: not supported")
			}
			b, err := json.MarshalIndent(ExampleSpec(), "", "\t")
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
	cmd.Flags().BoolVar(&rootless, "rootless", false, "not supported")
	return cmd
}
