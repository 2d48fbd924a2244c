package nri

import (
	"fmt"
	"slices"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// SetLimits overrides limits with those that plugins have set.
func SetLimits(to *specs.LinuxResources, r *api.LinuxResources) error {
	if r == nil {
		return nil
	}
	switch {
	case r.GetBlockioClass() != nil && r.BlockioClass.Value != "":
		return fmt.Errorf("blockio_class: %q: no classes are configured", r.BlockioClass.Value)
	case r.GetRdtClass() != nil && r.RdtClass.Value != "":
		return fmt.Errorf("rdt_class: %q: not supported", r.RdtClass.Value)
	case r.GetMemory().GetUseHierarchy() != nil && !r.Memory.UseHierarchy.Value:
		return fmt.Errorf("memory.use_hierarchy: false: groups are always hierarchical")
	}
	if r.Memory != nil {
		setMemory(to, r.Memory)
	}
	if r.Cpu != nil {
		setCPU(to, r.Cpu)
	}
	for _, h := range r.HugepageLimits {
		to.HugepageLimits = slices.DeleteFunc(to.HugepageLimits, func(o specs.LinuxHugepageLimit) bool { return o.Pagesize == h.PageSize })
		to.HugepageLimits = append(to.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.PageSize, Limit: h.Limit})
	}
	for k, v := range r.Unified {
		if to.Unified == nil {
			to.Unified = map[string]string{}
		}
		to.Unified[k] = v
	}
	if r.Pids != nil {
		to.Pids = &specs.LinuxPids{Limit: new(max(r.Pids.Limit, -1))}
	}
	for _, d := range r.Devices {
		to.Devices = append(to.Devices, specs.LinuxDeviceCgroup{
			Allow: d.Allow, Type: d.Type, Major: d.Major.Get(), Minor: d.Minor.Get(), Access: d.Access,
		})
	}
	return nil
}

func setMemory(to *specs.LinuxResources, m *api.LinuxMemory) {
	if to.Memory == nil {
		to.Memory = &specs.LinuxMemory{}
	}
	old := *to.Memory
	set(&to.Memory.Limit, m.Limit.Get())
	set(&to.Memory.Reservation, m.Reservation.Get())
	set(&to.Memory.Swap, m.Swap.Get())
	set(&to.Memory.Kernel, m.Kernel.Get()) //nolint:staticcheck // deprecated, and refused with its name
	set(&to.Memory.KernelTCP, m.KernelTcp.Get())
	set(&to.Memory.Swappiness, m.Swappiness.Get())
	set(&to.Memory.DisableOOMKiller, m.DisableOomKiller.Get())
	// The limit of memory and swap together must not be below the new one of
	// memory; how much swap there is stays as it was.
	if m.Limit != nil && m.Swap == nil && old.Swap != nil && *old.Swap > 0 && m.Limit.Value > 0 {
		swap := int64(0)
		if old.Limit != nil && *old.Swap > *old.Limit {
			swap = *old.Swap - *old.Limit
		}
		to.Memory.Swap = new(m.Limit.Value + swap)
	}
	if *to.Memory == (specs.LinuxMemory{}) {
		to.Memory = nil
	}
}

func setCPU(to *specs.LinuxResources, c *api.LinuxCPU) {
	if to.CPU == nil {
		to.CPU = &specs.LinuxCPU{}
	}
	set(&to.CPU.Shares, c.Shares.Get())
	set(&to.CPU.Quota, c.Quota.Get())
	set(&to.CPU.Period, c.Period.Get())
	set(&to.CPU.RealtimeRuntime, c.RealtimeRuntime.Get())
	set(&to.CPU.RealtimePeriod, c.RealtimePeriod.Get())
	if c.Cpus != "" {
		to.CPU.Cpus = c.Cpus
	}
	if c.Mems != "" {
		to.CPU.Mems = c.Mems
	}
	if *to.CPU == (specs.LinuxCPU{}) {
		to.CPU = nil
	}
}

func set[T any](to **T, from *T) {
	if from != nil {
		*to = from
	}
}

// CRILimits returns those limits for which CRI has fields, as an update: zero
// values change nothing.
func CRILimits(r *api.LinuxResources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{
		MemoryLimitInBytes: r.GetMemory().GetLimit().GetValue(), MemorySwapLimitInBytes: r.GetMemory().GetSwap().GetValue(),
		CpuShares: int64(r.GetCpu().GetShares().GetValue()), CpuQuota: r.GetCpu().GetQuota().GetValue(),
		CpuPeriod:  int64(r.GetCpu().GetPeriod().GetValue()),
		CpusetCpus: r.GetCpu().GetCpus(), CpusetMems: r.GetCpu().GetMems(),
		Unified: r.GetUnified(),
	}
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: h.PageSize, Limit: h.Limit})
	}
	return out
}
