package metric

import (
	"podstead/cgroup"
)

func general() []metric {
	return []metric{
		{"container_last_seen", "Last time a container was seen by the exporter", gauge, nil,
			func(s *Sample) []value { return unix(s.Seen) }},
		{"container_creation_time_seconds", "Creation time of the container since unix epoch in seconds.", gauge, nil,
			func(s *Sample) []value { return unix(s.Created) }},
		{"container_start_time_seconds", "Start time of the container since unix epoch in seconds.", gauge, nil,
			func(s *Sample) []value { return unix(s.Started) }},
		{"container_oom_events_total", "Count of out of memory events observed for the container", counter, nil,
			func(s *Sample) []value { return maybe(s.OOMKills) }},
	}
}

func processor() []metric {
	timed := func(f func(*cgroup.Usage) *uint64) func(*Sample) []value {
		return used(func(u *cgroup.Usage) []value {
			n := f(u)
			if n == nil {
				return nil
			}
			return one(seconds(*n))
		})
	}
	throttled := func(f func(*cgroup.Throttling) uint64) func(*Sample) []value {
		return func(s *Sample) []value {
			if s.Usage == nil || s.Usage.Throttling == nil || !hasQuota(s) {
				return nil // cAdvisor has them where there is a quota
			}
			return one(f(s.Usage.Throttling))
		}
	}
	return []metric{
		{"container_cpu_user_seconds_total", "Cumulative user CPU time consumed in seconds.", counter, nil,
			timed(func(u *cgroup.Usage) *uint64 { return u.CPUUser })},
		{"container_cpu_system_seconds_total", "Cumulative system CPU time consumed in seconds.", counter, nil,
			timed(func(u *cgroup.Usage) *uint64 { return u.CPUSystem })},
		{"container_cpu_usage_seconds_total", "Cumulative CPU time consumed in seconds.", counter, []string{"cpu"},
			used(func(u *cgroup.Usage) []value { return one(seconds(u.CPUNanoseconds), "total") })},
		{"container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", counter, nil,
			throttled(func(t *cgroup.Throttling) uint64 { return t.Periods })},
		{"container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", counter, nil,
			throttled(func(t *cgroup.Throttling) uint64 { return t.ThrottledPeriods })},
		{"container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.", counter, nil,
			throttled(func(t *cgroup.Throttling) uint64 { return seconds(t.ThrottledTime) })},
		{"container_cpu_cfs_burst_periods_total", "Number of periods when burst occurs.", counter, nil,
			throttled(func(t *cgroup.Throttling) uint64 { return t.Bursts })},
		{"container_cpu_cfs_burst_seconds_total", "Total time duration the container has been bursted.", counter, nil,
			throttled(func(t *cgroup.Throttling) uint64 { return seconds(t.BurstTime) })},
	}
}

func hasQuota(s *Sample) bool { return s.Resources.GetCpuQuota() > 0 }

func memory() []metric {
	of := func(f func(*cgroup.Usage) *uint64) func(*Sample) []value {
		return used(func(u *cgroup.Usage) []value { return maybe(f(u)) })
	}
	always := func(f func(*cgroup.Usage) uint64) func(*Sample) []value {
		return used(func(u *cgroup.Usage) []value {
			if !u.HasMemory {
				return nil
			}
			return one(f(u))
		})
	}
	return []metric{
		{"container_memory_cache", "Number of bytes of page cache memory.", gauge, nil,
			of(func(u *cgroup.Usage) *uint64 { return u.Cache })},
		{"container_memory_rss", "Size of RSS in bytes.", gauge, nil,
			always(func(u *cgroup.Usage) uint64 { return u.RSSBytes })},
		{"container_memory_kernel_usage", "Size of kernel memory allocated in bytes.", gauge, nil,
			of(func(u *cgroup.Usage) *uint64 { return u.Kernel })},
		{"container_memory_mapped_file", "Size of memory mapped files in bytes.", gauge, nil,
			of(func(u *cgroup.Usage) *uint64 { return u.MappedFile })},
		{"container_memory_swap", "Container swap usage in bytes.", gauge, nil,
			used(func(u *cgroup.Usage) []value {
				if !u.HasSwap {
					return nil
				}
				return one(u.SwapBytes)
			})},
		{"container_memory_failcnt", "Number of memory usage hits limits", counter, nil,
			of(func(u *cgroup.Usage) *uint64 { return u.MemoryLimitHits })},
		{"container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed", gauge, nil,
			always(func(u *cgroup.Usage) uint64 { return u.MemoryBytes })},
		{"container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes", gauge, nil,
			of(func(u *cgroup.Usage) *uint64 { return u.MemoryMax })},
		{"container_memory_working_set_bytes", "Current working set in bytes.", gauge, nil,
			always(func(u *cgroup.Usage) uint64 { return u.WorkingSetBytes })},
		{"container_memory_total_active_file_bytes", "Current total active file in bytes.", gauge, nil,
			of(func(u *cgroup.Usage) *uint64 { return u.ActiveFile })},
		{"container_memory_total_inactive_file_bytes", "Current total inactive file in bytes.", gauge, nil,
			of(func(u *cgroup.Usage) *uint64 { return u.InactiveFile })},
		{"container_memory_failures_total", "Cumulative count of memory allocation failures.", counter, []string{"failure_type", "scope"},
			used(pageFaults)},
		{"container_memory_events_high_total", "Cumulative count of memory.high throttle events for the container", counter, nil,
			of(func(u *cgroup.Usage) *uint64 { return u.MemoryHighHits })},
		{"container_memory_events_max_total", "Cumulative count of memory.max limit hit events for the container", counter, nil,
			of(func(u *cgroup.Usage) *uint64 { return u.MemoryLimitHits })},
		{"container_memory_file_dirty_bytes", "Number of bytes of file cache that has been modified but not yet written back to disk.", gauge, nil,
			of(func(u *cgroup.Usage) *uint64 { return u.FileDirty })},
		{"container_memory_file_writeback_bytes", "Number of bytes of file cache that is currently being written back to disk.", gauge, nil,
			of(func(u *cgroup.Usage) *uint64 { return u.FileWriteback })},
		{"container_memory_pgscan_total", "Cumulative number of pages scanned by the page reclaim algorithm.", counter, nil,
			of(func(u *cgroup.Usage) *uint64 { return u.PagesScanned })},
		{"container_memory_pgsteal_total", "Cumulative number of pages reclaimed by the page reclaim algorithm.", counter, nil,
			of(func(u *cgroup.Usage) *uint64 { return u.PagesReclaimed })},
		{"container_memory_workingset_refault_file_total", "Cumulative number of refaults of previously evicted file pages.", counter, nil,
			of(func(u *cgroup.Usage) *uint64 { return u.RefaultsFile })},
		{"container_memory_workingset_refault_anon_total", "Cumulative number of refaults of previously evicted anonymous pages.", counter, nil,
			of(func(u *cgroup.Usage) *uint64 { return u.RefaultsAnonymous })},
	}
}

func pageFaults(u *cgroup.Usage) []value {
	if !u.HasMemory {
		return nil
	}
	var v []value
	v = append(v, maybe(u.OwnPageFaults, "pgfault", "container")...)
	v = append(v, maybe(u.OwnMajorPageFaults, "pgmajfault", "container")...)
	v = append(v, one(u.PageFaults, "pgfault", "hierarchy")...)
	return append(v, one(u.MajorPageFaults, "pgmajfault", "hierarchy")...)
}

func pressure() []metric {
	stalled := func(of func(*cgroup.Usage) *cgroup.Pressure, share func(*cgroup.Pressure) cgroup.PressureShare) func(*Sample) []value {
		return used(func(u *cgroup.Usage) []value {
			p := of(u)
			if p == nil {
				return nil
			}
			return one(seconds(uint64(share(p).Total)))
		})
	}
	full := func(p *cgroup.Pressure) cgroup.PressureShare { return p.Full }
	some := func(p *cgroup.Pressure) cgroup.PressureShare { return p.Some }
	cpu := func(u *cgroup.Usage) *cgroup.Pressure { return u.CPUPressure }
	mem := func(u *cgroup.Usage) *cgroup.Pressure { return u.MemoryPressure }
	io := func(u *cgroup.Usage) *cgroup.Pressure { return u.IOPressure }
	return []metric{
		{"container_pressure_cpu_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to CPU congestion.", counter, nil, stalled(cpu, full)},
		{"container_pressure_cpu_waiting_seconds_total", "Total time duration tasks in the container have waited due to CPU congestion.", counter, nil, stalled(cpu, some)},
		{"container_pressure_memory_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to memory congestion.", counter, nil, stalled(mem, full)},
		{"container_pressure_memory_waiting_seconds_total", "Total time duration tasks in the container have waited due to memory congestion.", counter, nil, stalled(mem, some)},
		{"container_pressure_io_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to IO congestion.", counter, nil, stalled(io, full)},
		{"container_pressure_io_waiting_seconds_total", "Total time duration tasks in the container have waited due to IO congestion.", counter, nil, stalled(io, some)},
	}
}
