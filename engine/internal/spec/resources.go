package spec

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Resources translates limits; zero values are not set. The result is never
// nil, so that the caller may add device rules.
func Resources(r *runtimeapi.LinuxContainerResources) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	if r == nil {
		return out, nil
	}
	if err := checkResources(r); err != nil {
		return nil, err
	}
	cpu := &specs.LinuxCPU{Cpus: r.CpusetCpus, Mems: r.CpusetMems}
	if r.CpuShares != 0 {
		cpu.Shares = new(uint64(r.CpuShares))
	}
	if r.CpuQuota != 0 {
		cpu.Quota = new(r.CpuQuota)
	}
	if r.CpuPeriod != 0 {
		cpu.Period = new(uint64(r.CpuPeriod))
	}
	if *cpu != (specs.LinuxCPU{}) {
		out.CPU = cpu
	}
	memory := &specs.LinuxMemory{}
	if r.MemoryLimitInBytes != 0 {
		memory.Limit = new(r.MemoryLimitInBytes)
	}
	if r.MemorySwapLimitInBytes != 0 {
		memory.Swap = new(r.MemorySwapLimitInBytes)
	}
	if *memory != (specs.LinuxMemory{}) {
		out.Memory = memory
	}
	for _, h := range r.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.PageSize, Limit: h.Limit})
	}
	if len(r.Unified) > 0 {
		out.Unified = map[string]string{}
		for k, v := range r.Unified {
			out.Unified[k] = v
		}
	}
	return out, nil
}

func checkResources(r *runtimeapi.LinuxContainerResources) error {
	for _, f := range []struct {
		name  string
		value int64
		min   int64
	}{
		{"cpu_shares", r.CpuShares, 0},
		{"cpu_period", r.CpuPeriod, 0},
		{"cpu_quota", r.CpuQuota, -1},
		{"memory_limit_in_bytes", r.MemoryLimitInBytes, -1},
		{"memory_swap_limit_in_bytes", r.MemorySwapLimitInBytes, -1},
	} {
		if f.value < f.min {
			return invalid("linux.resources.%s: %d is below %d", f.name, f.value, f.min)
		}
	}
	if swap, limit := r.MemorySwapLimitInBytes, r.MemoryLimitInBytes; swap > 0 && limit > swap {
		return invalid("linux.resources.memory_swap_limit_in_bytes: %d is below memory_limit_in_bytes %d", swap, limit)
	}
	for k := range r.Unified {
		if strings.Contains(k, "/") || !strings.Contains(k, ".") {
			return invalid("linux.resources.unified: %q is not the name of a cgroup file", k)
		}
	}
	return nil
}

// MergeResources returns old with the set fields of update, which is how an
// update of a running container is meant: zero values change nothing.
func MergeResources(old, update *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	m := &runtimeapi.LinuxContainerResources{
		CpuPeriod: old.GetCpuPeriod(), CpuQuota: old.GetCpuQuota(), CpuShares: old.GetCpuShares(),
		MemoryLimitInBytes: old.GetMemoryLimitInBytes(), MemorySwapLimitInBytes: old.GetMemorySwapLimitInBytes(),
		OomScoreAdj: old.GetOomScoreAdj(), CpusetCpus: old.GetCpusetCpus(), CpusetMems: old.GetCpusetMems(),
		HugepageLimits: slices.Clone(old.GetHugepageLimits()), Unified: map[string]string{},
	}
	for _, f := range []struct {
		to   *int64
		from int64
	}{
		{&m.CpuPeriod, update.CpuPeriod}, {&m.CpuQuota, update.CpuQuota}, {&m.CpuShares, update.CpuShares},
		{&m.MemoryLimitInBytes, update.MemoryLimitInBytes},
		{&m.MemorySwapLimitInBytes, update.MemorySwapLimitInBytes},
		{&m.OomScoreAdj, update.OomScoreAdj},
	} {
		if f.from != 0 {
			*f.to = f.from
		}
	}
	// Swap is limited together with memory. A new limit of memory alone leaves
	// the share of swap as it is.
	if limit, swap := old.GetMemoryLimitInBytes(), old.GetMemorySwapLimitInBytes(); update.MemoryLimitInBytes > 0 &&
		update.MemorySwapLimitInBytes == 0 && limit > 0 && swap >= limit {
		m.MemorySwapLimitInBytes = update.MemoryLimitInBytes + swap - limit
	}
	if update.CpusetCpus != "" {
		m.CpusetCpus = update.CpusetCpus
	}
	if update.CpusetMems != "" {
		m.CpusetMems = update.CpusetMems
	}
	for _, h := range update.HugepageLimits {
		m.HugepageLimits = slices.DeleteFunc(m.HugepageLimits, func(o *runtimeapi.HugepageLimit) bool { return o.PageSize == h.PageSize })
		m.HugepageLimits = append(m.HugepageLimits, h)
	}
	for _, from := range []map[string]string{old.GetUnified(), update.Unified} {
		for k, v := range from {
			m.Unified[k] = v
		}
	}
	return m
}
