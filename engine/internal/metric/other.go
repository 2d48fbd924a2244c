package metric

import (
	"strconv"

	"podstead/cgroup"
)

func disk() []metric {
	of := func(f func(*Disk) uint64) func(*Sample) []value {
		return func(s *Sample) []value {
			if s.Disk == nil {
				return nil
			}
			return one(f(s.Disk), s.Disk.Device)
		}
	}
	device := []string{"device"}
	return []metric{
		{"container_fs_inodes_free", "Number of available Inodes", gauge, device, of(func(d *Disk) uint64 { return d.InodesFree })},
		{"container_fs_inodes_total", "Number of Inodes", gauge, device, of(func(d *Disk) uint64 { return d.Inodes })},
		{"container_fs_limit_bytes", "Number of bytes that can be consumed by the container on this filesystem.", gauge, device,
			of(func(d *Disk) uint64 { return d.Bytes })},
		{"container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", gauge, device,
			func(s *Sample) []value {
				if s.Disk == nil || s.Disk.Used == nil {
					return nil
				}
				return []value{{n: *s.Disk.Used, labels: []string{s.Disk.Device}, at: s.Disk.UsedAt}}
			}},
	}
}

func blockIO() []metric {
	each := func(f func(cgroup.DeviceIO) uint64) func(*Sample) []value {
		return func(s *Sample) []value {
			if s.Usage == nil {
				return nil
			}
			var v []value
			for _, d := range s.Usage.IO {
				v = append(v, one(f(d), s.device(d))...)
			}
			return v
		}
	}
	cost := func(f func(*cgroup.IOCost) uint64) func(*Sample) []value {
		return func(s *Sample) []value {
			if s.Usage == nil {
				return nil
			}
			var v []value
			for _, d := range s.Usage.IO {
				if d.Cost != nil {
					v = append(v, one(seconds(f(d.Cost)), s.device(d))...)
				}
			}
			return v
		}
	}
	device := []string{"device"}
	return []metric{
		{"container_fs_io_cost_usage_seconds_total", "Cumulative IOCost usage in seconds", counter, device,
			cost(func(c *cgroup.IOCost) uint64 { return c.Usage })},
		{"container_fs_io_cost_wait_seconds_total", "Cumulative IOCost wait in seconds", counter, device,
			cost(func(c *cgroup.IOCost) uint64 { return c.Wait })},
		{"container_fs_io_cost_indebt_seconds_total", "Cumulative IOCost debt in seconds", counter, device,
			cost(func(c *cgroup.IOCost) uint64 { return c.Indebt })},
		{"container_fs_io_cost_indelay_seconds_total", "Cumulative IOCost delay in seconds", counter, device,
			cost(func(c *cgroup.IOCost) uint64 { return c.Indelay })},
		{"container_fs_reads_bytes_total", "Cumulative count of bytes read", counter, device,
			each(func(d cgroup.DeviceIO) uint64 { return d.ReadBytes })},
		{"container_fs_reads_total", "Cumulative count of reads completed", counter, device,
			each(func(d cgroup.DeviceIO) uint64 { return d.Reads })},
		{"container_fs_writes_bytes_total", "Cumulative count of bytes written", counter, device,
			each(func(d cgroup.DeviceIO) uint64 { return d.WriteBytes })},
		{"container_fs_writes_total", "Cumulative count of writes completed", counter, device,
			each(func(d cgroup.DeviceIO) uint64 { return d.Writes })},
		{"container_blkio_device_usage_total", "Blkio Device bytes usage", counter, []string{"device", "major", "minor", "operation"},
			func(s *Sample) []value {
				if s.Usage == nil {
					return nil
				}
				var v []value
				for _, d := range s.Usage.IO {
					name, major, minor := s.device(d), number(d.Major), number(d.Minor)
					v = append(v, one(d.ReadBytes, name, major, minor, "Read")...)
					v = append(v, one(d.WriteBytes, name, major, minor, "Write")...)
				}
				return v
			}},
	}
}

func number(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

func (s *Sample) device(d cgroup.DeviceIO) string {
	if s.DeviceName != nil {
		if name := s.DeviceName(d.Major, d.Minor); name != "" {
			return name
		}
	}
	return number(d.Major) + ":" + number(d.Minor)
}

func hugepages() []metric {
	each := func(f func(cgroup.Hugepages) *uint64) func(*Sample) []value {
		return used(func(u *cgroup.Usage) []value {
			var v []value
			for _, h := range u.Hugepages {
				v = append(v, maybe(f(h), h.Size)...)
			}
			return v
		})
	}
	key := []string{"pagesize"}
	return []metric{
		{"container_hugetlb_failcnt", "Number of hugepage usage hits limits", counter, key, each(func(h cgroup.Hugepages) *uint64 { return &h.Hits })},
		{"container_hugetlb_usage_bytes", "Current hugepage usage in bytes", gauge, key, each(func(h cgroup.Hugepages) *uint64 { return &h.Bytes })},
		{"container_hugetlb_max_usage_bytes", "Maximum hugepage usage recorded in bytes", gauge, key,
			each(func(h cgroup.Hugepages) *uint64 { return h.MaxBytes })},
	}
}

func network() []metric {
	each := func(f func(Interface) uint64) func(*Sample) []value {
		return func(s *Sample) []value {
			var v []value
			for _, i := range s.Interfaces {
				v = append(v, one(f(i), i.Name)...)
			}
			return v
		}
	}
	key := []string{"interface"}
	return []metric{
		{"container_network_receive_bytes_total", "Cumulative count of bytes received", counter, key, each(func(i Interface) uint64 { return i.RxBytes })},
		{"container_network_receive_packets_total", "Cumulative count of packets received", counter, key, each(func(i Interface) uint64 { return i.RxPackets })},
		{"container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving", counter, key, each(func(i Interface) uint64 { return i.RxDropped })},
		{"container_network_receive_errors_total", "Cumulative count of errors encountered while receiving", counter, key, each(func(i Interface) uint64 { return i.RxErrors })},
		{"container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", counter, key, each(func(i Interface) uint64 { return i.TxBytes })},
		{"container_network_transmit_packets_total", "Cumulative count of packets transmitted", counter, key, each(func(i Interface) uint64 { return i.TxPackets })},
		{"container_network_transmit_packets_dropped_total", "Cumulative count of packets dropped while transmitting", counter, key, each(func(i Interface) uint64 { return i.TxDropped })},
		{"container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting", counter, key, each(func(i Interface) uint64 { return i.TxErrors })},
	}
}

func processes() []metric {
	of := func(f func(*Processes) *uint64, labels ...string) func(*Sample) []value {
		return func(s *Sample) []value {
			if s.Processes == nil {
				return nil
			}
			return maybe(f(s.Processes), labels...)
		}
	}
	return []metric{
		{"container_processes", "Number of processes running inside the container.", gauge, nil,
			of(func(p *Processes) *uint64 { return &p.Count })},
		{"container_file_descriptors", "Number of open file descriptors for the container.", gauge, nil,
			of(func(p *Processes) *uint64 { return p.OpenFiles })},
		{"container_sockets", "Number of open sockets for the container.", gauge, nil,
			of(func(p *Processes) *uint64 { return p.Sockets })},
		{"container_threads_max", "Maximum number of threads allowed inside the container, infinity if value is zero", gauge, nil,
			used(func(u *cgroup.Usage) []value {
				if !u.HasPids {
					return nil
				}
				return one(u.PidsLimit)
			})},
		{"container_threads", "Number of threads running inside the container", gauge, nil,
			used(func(u *cgroup.Usage) []value {
				if !u.HasPids {
					return nil
				}
				return one(u.Pids)
			})},
		{"container_ulimits_soft", "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice", gauge, []string{"ulimit"},
			of(func(p *Processes) *uint64 { return p.MaxOpenFiles }, "max_open_files")},
		{"container_tasks_state", "Number of tasks in given state", gauge, []string{"state"},
			func(s *Sample) []value {
				if s.Processes == nil || s.Processes.Threads == nil {
					return nil
				}
				t := s.Processes.Threads
				v := one(t.Sleeping, "sleeping")
				v = append(v, one(t.Running, "running")...)
				v = append(v, one(t.Stopped, "stopped")...)
				return append(v, one(t.Uninterruptible, "uninterruptible")...)
			}},
	}
}

// limits are what the container was given. 0 is no limit, as cAdvisor has it.
func limits() []metric {
	of := func(f func(*Sample) int64, shown func(int64) bool) func(*Sample) []value {
		return func(s *Sample) []value {
			if s.Resources == nil || !shown(f(s)) {
				return nil
			}
			return one(uint64(max(f(s), 0)))
		}
	}
	ever := func(int64) bool { return true }
	set := func(n int64) bool { return n > 0 }
	return []metric{
		{"container_spec_cpu_period", "CPU period of the container.", gauge, nil, of(func(s *Sample) int64 {
			if p := s.Resources.GetCpuPeriod(); p != 0 {
				return p
			}
			return 100_000 // the kernel's, microseconds
		}, ever)},
		{"container_spec_cpu_quota", "CPU quota of the container.", gauge, nil, of(func(s *Sample) int64 { return s.Resources.GetCpuQuota() }, set)},
		{"container_spec_cpu_shares", "CPU share of the container.", gauge, nil, of(func(s *Sample) int64 { return s.Resources.GetCpuShares() }, set)},
		{"container_spec_memory_limit_bytes", "Memory limit for the container.", gauge, nil,
			of(func(s *Sample) int64 { return s.Resources.GetMemoryLimitInBytes() }, ever)},
		{"container_spec_memory_swap_limit_bytes", "Memory swap limit for the container.", gauge, nil,
			of(func(s *Sample) int64 { return s.Resources.GetMemorySwapLimitInBytes() }, ever)},
		{"container_spec_memory_reservation_limit_bytes", "Memory reservation limit for the container.", gauge, nil,
			of(func(s *Sample) int64 {
				n, _ := strconv.ParseInt(s.Resources.GetUnified()["memory.min"], 10, 64) // "max" and none are none
				return n
			}, ever)},
	}
}
