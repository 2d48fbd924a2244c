package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"podstead/cgroup"
)

// Update changes a container's limits, and its share of caches if rdt is given;
// what is nil or empty stays as it is. When a limit is refused, all keep their
// old values.
func (r *Runtime) Update(_ context.Context, id string, res *specs.LinuxResources, rdt *specs.LinuxIntelRdt) error {
	c, err := r.loadLocked(id)
	if err != nil {
		return err
	}
	defer c.unlock()
	if _, err := c.need("update", specs.StateRunning, specs.StateCreated, statusPaused); err != nil {
		return err
	}
	if len(res.Devices) > 0 { // all of them, as containerd gives them
		all := *res
		all.Devices = append(slices.Clone(res.Devices), cgroup.DefaultDevices()...)
		res = &all
	}
	undo, err := c.group().Change(res)
	if err != nil || rdt == nil {
		return err
	}
	if err := c.updateResctrl(rdt); err != nil {
		undo()
		return fmt.Errorf("update container %s: intelRdt: %w", id, err)
	}
	return nil
}

// updateFlags are limits as runc's command line has them.
type updateFlags struct {
	flags *pflag.FlagSet
	file  string

	blkioWeight                                        uint16
	period, share, rtPeriod, burst                     uint64
	quota, rtRuntime, idle                             int64
	cpus, mems                                         string
	memory, reservation, swap, pids, kernel, kernelTCP int64
	l3, mb                                             string
}

func (u *updateFlags) add(f *pflag.FlagSet) {
	u.flags = f
	f.StringVarP(&u.file, "resources", "r", "", "file with the limits as JSON (linux.resources), - for standard input; other flags are ignored then")
	f.Uint16Var(&u.blkioWeight, "blkio-weight", 0, "block I/O weight, 10 to 1000")
	f.Uint64Var(&u.period, "cpu-period", 0, "CPU period in µs")
	f.Int64Var(&u.quota, "cpu-quota", 0, "CPU time per period in µs, -1 for no limit")
	f.Uint64Var(&u.burst, "cpu-burst", 0, "CPU time in µs that may be saved up")
	f.Uint64Var(&u.share, "cpu-share", 0, "CPU shares")
	f.Uint64Var(&u.rtPeriod, "cpu-rt-period", 0, "realtime period in µs")
	f.Int64Var(&u.rtRuntime, "cpu-rt-runtime", 0, "realtime CPU time per period in µs")
	f.Int64Var(&u.idle, "cpu-idle", 0, "1: run only when nothing else does")
	f.StringVar(&u.cpus, "cpuset-cpus", "", "CPUs to use")
	f.StringVar(&u.mems, "cpuset-mems", "", "memory nodes to use")
	f.Int64Var(&u.memory, "memory", 0, "memory in bytes, -1 for no limit")
	f.Int64Var(&u.reservation, "memory-reservation", 0, "memory in bytes that is kept if there is a choice")
	f.Int64Var(&u.swap, "memory-swap", 0, "memory and swap in bytes, -1 for no limit")
	f.Int64Var(&u.kernel, "kernel-memory", 0, "obsolete: not supported")
	f.Int64Var(&u.kernelTCP, "kernel-memory-tcp", 0, "memory of TCP buffers in bytes (cgroup v1)")
	f.Int64Var(&u.pids, "pids-limit", 0, "number of processes, -1 for no limit")
	f.StringVar(&u.l3, "l3-cache-schema", "", "share of the L3 cache: L3:ID=MASK;…")
	f.StringVar(&u.mb, "mem-bw-schema", "", "share of memory bandwidth: MB:ID=VALUE;…")
}

// resources are the limits of the flags that were given.
func (u *updateFlags) resources(stdin io.Reader) (*specs.LinuxResources, error) {
	if u.file != "" {
		return readResources(u.file, stdin)
	}
	res := &specs.LinuxResources{
		CPU: &specs.LinuxCPU{Cpus: u.cpus, Mems: u.mems}, Memory: &specs.LinuxMemory{},
		Pids: &specs.LinuxPids{}, BlockIO: &specs.LinuxBlockIO{},
	}
	set(u, "cpu-period", &res.CPU.Period, &u.period)
	set(u, "cpu-quota", &res.CPU.Quota, &u.quota)
	set(u, "cpu-burst", &res.CPU.Burst, &u.burst)
	set(u, "cpu-share", &res.CPU.Shares, &u.share)
	set(u, "cpu-rt-period", &res.CPU.RealtimePeriod, &u.rtPeriod)
	set(u, "cpu-rt-runtime", &res.CPU.RealtimeRuntime, &u.rtRuntime)
	set(u, "cpu-idle", &res.CPU.Idle, &u.idle)
	set(u, "memory", &res.Memory.Limit, &u.memory)
	set(u, "memory-reservation", &res.Memory.Reservation, &u.reservation)
	set(u, "memory-swap", &res.Memory.Swap, &u.swap)
	set(u, "kernel-memory", &res.Memory.Kernel, &u.kernel) //nolint:staticcheck // to be refused by name
	set(u, "kernel-memory-tcp", &res.Memory.KernelTCP, &u.kernelTCP)
	set(u, "pids-limit", &res.Pids.Limit, &u.pids)
	set(u, "blkio-weight", &res.BlockIO.Weight, &u.blkioWeight)
	return res, nil
}

// rdt is what the flags say of caches, nil for nothing.
func (u *updateFlags) rdt() *specs.LinuxIntelRdt {
	if u.l3 == "" && u.mb == "" {
		return nil
	}
	return &specs.LinuxIntelRdt{L3CacheSchema: u.l3, MemBwSchema: u.mb}
}

func set[T any](u *updateFlags, name string, to **T, value *T) {
	if u.flags.Changed(name) {
		*to = value
	}
}

func readResources(file string, stdin io.Reader) (*specs.LinuxResources, error) {
	in := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("--resources: %w", err)
		}
		defer f.Close()
		in = f
	}
	var res specs.LinuxResources
	if err := json.NewDecoder(in).Decode(&res); err != nil {
		return nil, fmt.Errorf("--resources %s: %w", file, err)
	}
	if p := res.Pids; p != nil && p.Limit != nil && *p.Limit == 0 {
		p.Limit = nil // callers that do not mean it write 0
	}
	return &res, nil
}

func updateCommand(cli *cli) *cobra.Command {
	var u updateFlags
	cmd := &cobra.Command{
		Use:   "update CONTAINER",
		Short: "Change a container's limits",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			res, err := u.resources(cmd.InOrStdin())
			if err != nil {
				return err
			}
			return cli.runtime.Update(cmd.Context(), args[0], res, u.rdt())
		},
	}
	u.add(cmd.Flags())
	return cmd
}
