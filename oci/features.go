package oci

import (
	"encoding/json"

	"github.com/opencontainers/runtime-spec/specs-go/features"
	"github.com/spf13/cobra"

	"podstead/oci/hook"
	"podstead/oci/launch"
	"podstead/oci/seccomp"
)

// Features tells what the runtime can do, whatever the host can.
func Features() features.Features {
	yes, no := true, false
	var hooks []string
	for _, k := range hook.Kinds(nil) {
		hooks = append(hooks, k.Name)
	}
	return features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: Version,
		Hooks:         hooks,
		MountOptions:  launch.MountOptions(),
		Linux: &features.Linux{
			Namespaces:      launch.Namespaces(),
			Capabilities:    launch.Capabilities(),
			Cgroup:          &features.Cgroup{V1: &yes, V2: &yes, Systemd: &yes, SystemdUser: &no, Rdma: &yes},
			Seccomp:         seccomp.Features(),
			Apparmor:        &features.Apparmor{Enabled: &yes},
			Selinux:         &features.Selinux{Enabled: &yes},
			IntelRdt:        &features.IntelRdt{Enabled: &yes, Schemata: &yes, Monitoring: &yes},
			MemoryPolicy:    &features.MemoryPolicy{Modes: launch.MemoryModes(), Flags: launch.MemoryFlags()},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
			NetDevices:      &features.NetDevices{Enabled: &yes},
		},
		PotentiallyUnsafeConfigAnnotations: []string{"bundle"},
	}
}

func featuresCommand(*cli) *cobra.Command {
	return &cobra.Command{
		Use:   "features",
		Short: "Print what this runtime can do, as JSON",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			enc := json.NewEncoder(cmd.OutOrStdout())
			enc.SetIndent("", "    ")
			return enc.Encode(Features())
		},
	}
}
