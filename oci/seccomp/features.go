package seccomp

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// Features tells what a profile may ask for, on any kernel.
func Features() *features.Seccomp {
	yes := true
	f := &features.Seccomp{Enabled: &yes}
	for _, a := range []specs.LinuxSeccompAction{
		specs.ActKill, specs.ActKillThread, specs.ActKillProcess, specs.ActTrap, specs.ActErrno, specs.ActTrace,
		specs.ActAllow, specs.ActLog, specs.ActNotify,
	} {
		f.Actions = append(f.Actions, string(a))
	}
	for _, o := range operators {
		f.Operators = append(f.Operators, string(o))
	}
	for a := range knownArchs {
		f.Archs = append(f.Archs, string(a))
	}
	slices.Sort(f.Archs)
	for _, l := range []specs.LinuxSeccompFlag{
		"SECCOMP_FILTER_FLAG_TSYNC", specs.LinuxSeccompFlagSpecAllow, specs.LinuxSeccompFlagLog,
		specs.LinuxSeccompFlagWaitKillableRecv,
	} {
		f.KnownFlags = append(f.KnownFlags, string(l))
	}
	f.SupportedFlags = f.KnownFlags
	return f
}
