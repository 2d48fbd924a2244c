package cgroup

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// compiler translates limits into files and values, touching nothing but the
// present values that a new one depends on.
type compiler struct {
	version func(controller string) int // 1, 2, or 0 for none
	hybrid  bool                        // there is a cgroup2 tree
	current func(controller, file string) (string, error)
	changes []change
}

func refuse(field, format string, args ...any) error {
	return &LimitError{Field: "linux.resources." + field, Err: fmt.Errorf(format, args...)}
}

func (c *compiler) add(field, controller, file string, value any) {
	c.changes = append(c.changes, change{
		field: field, controller: controller, file: file, value: fmt.Sprint(value),
	})
}

func (c *compiler) addKeyed(field, controller, file, value string) {
	c.add(field, controller, file, value)
	c.changes[len(c.changes)-1].keyed = true
}

// need refuses a field whose controller the host does not have.
func (c *compiler) need(controller, field string) (version int, err error) {
	if version = c.version(controller); version == 0 {
		return 0, refuse(field, "the host has no %s controller", controller)
	}
	return version, nil
}

func (c *compiler) compile(r *specs.LinuxResources) error {
	for _, part := range []func(*specs.LinuxResources) error{
		c.cpu, c.cpuset, c.memory, c.pids, c.blockIO, c.hugepages, c.network, c.rdma, c.unified,
	} {
		if err := part(r); err != nil {
			return err
		}
	}
	return nil
}

func (c *compiler) pids(r *specs.LinuxResources) error {
	if r.Pids == nil || r.Pids.Limit == nil {
		return nil
	}
	if _, err := c.need("pids", "pids.limit"); err != nil {
		return err
	}
	limit := *r.Pids.Limit
	if limit == 0 {
		limit = 1 // the group's only process, which could not be born into it else
	}
	c.add("pids.limit", "pids", "pids.max", limitV2(limit))
	return nil
}

// limitV2 prints a limit where below 0 is none.
func limitV2(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

func (c *compiler) cpuset(r *specs.LinuxResources) error {
	if r.CPU == nil {
		return nil
	}
	for _, f := range []struct{ field, file, value string }{
		{"cpu.cpus", "cpuset.cpus", r.CPU.Cpus},
		{"cpu.mems", "cpuset.mems", r.CPU.Mems},
	} {
		if f.value == "" {
			continue
		}
		if _, err := c.need("cpuset", f.field); err != nil {
			return err
		}
		c.add(f.field, "cpuset", f.file, f.value)
	}
	return nil
}

func (c *compiler) cpu(r *specs.LinuxResources) error {
	cpu := r.CPU
	field := firstCPUField(cpu)
	if field == "" {
		return nil
	}
	version, err := c.need("cpu", field)
	if err != nil {
		return err
	}
	if version == 2 {
		return c.cpuV2(cpu)
	}
	// An idle group has no weight of its own, and the kernel refuses one.
	idle := cpu.Idle != nil && *cpu.Idle == 1
	if cpu.Idle != nil {
		c.add("cpu.idle", "cpu", "cpu.idle", *cpu.Idle)
	}
	if !idle {
		addSet(c, "cpu.shares", "cpu", "cpu.shares", cpu.Shares)
	}
	addSet(c, "cpu.period", "cpu", "cpu.cfs_period_us", cpu.Period)
	addSet(c, "cpu.quota", "cpu", "cpu.cfs_quota_us", cpu.Quota)
	if cpu.Burst != nil {
		c.add("cpu.burst", "cpu", "cpu.cfs_burst_us", *cpu.Burst)
	}
	addSet(c, "cpu.realtimePeriod", "cpu", "cpu.rt_period_us", cpu.RealtimePeriod)
	addSet(c, "cpu.realtimeRuntime", "cpu", "cpu.rt_runtime_us", cpu.RealtimeRuntime)
	return nil
}

// firstCPUField names a field that asks for something of the cpu controller.
func firstCPUField(cpu *specs.LinuxCPU) string {
	switch {
	case cpu == nil:
		return ""
	case cpu.Shares != nil && *cpu.Shares != 0:
		return "cpu.shares"
	case isSet(cpu.Quota):
		return "cpu.quota"
	case cpu.Period != nil && *cpu.Period != 0:
		return "cpu.period"
	case cpu.Burst != nil:
		return "cpu.burst"
	case cpu.Idle != nil:
		return "cpu.idle"
	case isSet(cpu.RealtimeRuntime):
		return "cpu.realtimeRuntime"
	case cpu.RealtimePeriod != nil && *cpu.RealtimePeriod != 0:
		return "cpu.realtimePeriod"
	}
	return ""
}

// addSet adds a change for a field that is there and not 0.
func addSet[T int64 | uint64 | uint32](c *compiler, field, controller, file string, value *T) {
	if value != nil && *value != 0 {
		c.add(field, controller, file, *value)
	}
}

func (c *compiler) cpuV2(cpu *specs.LinuxCPU) error {
	if cpu.RealtimeRuntime != nil && *cpu.RealtimeRuntime != 0 {
		return refuse("cpu.realtimeRuntime", "cgroup v2 has no realtime limits")
	}
	if cpu.RealtimePeriod != nil && *cpu.RealtimePeriod != 0 {
		return refuse("cpu.realtimePeriod", "cgroup v2 has no realtime limits")
	}
	idle := cpu.Idle != nil && *cpu.Idle == 1
	if cpu.Idle != nil {
		c.add("cpu.idle", "cpu", "cpu.idle", *cpu.Idle)
	}
	if cpu.Shares != nil && *cpu.Shares != 0 && !idle {
		c.add("cpu.shares", "cpu", "cpu.weight", WeightFromShares(*cpu.Shares))
	}
	if err := c.cpuMax(cpu); err != nil {
		return err
	}
	if cpu.Burst != nil {
		c.add("cpu.burst", "cpu", "cpu.max.burst", *cpu.Burst)
	}
	return nil
}

// cpuMax makes one value of quota and period: the kernel keeps the period when
// only a quota is written, but not the other way round.
func (c *compiler) cpuMax(cpu *specs.LinuxCPU) error {
	quota := ""
	field := "cpu.quota"
	if cpu.Quota != nil && *cpu.Quota != 0 {
		quota = limitV2(*cpu.Quota)
	}
	period := cpu.Period != nil && *cpu.Period != 0
	if quota == "" && period {
		field = "cpu.period"
		now, err := c.current("cpu", "cpu.max")
		if err != nil {
			return refuse(field, "%w", err)
		}
		quota, _, _ = strings.Cut(now, " ")
	}
	if quota == "" {
		return nil
	}
	if period {
		quota += " " + strconv.FormatUint(*cpu.Period, 10)
	}
	c.add(field, "cpu", "cpu.max", quota)
	return nil
}

func (c *compiler) hugepages(r *specs.LinuxResources) error {
	for i, l := range r.HugepageLimits {
		field := fmt.Sprintf("hugepageLimits[%d]", i)
		if l.Limit == 0 && c.version("hugetlb") == 0 {
			continue // the kubelet names each size that a host has, which need not count them
		}
		version, err := c.need("hugetlb", field)
		if err != nil {
			return err
		}
		if l.Pagesize == "" || strings.ContainsAny(l.Pagesize, "/.\n") {
			return refuse(field+".pageSize", "%q is not a page size", l.Pagesize)
		}
		file, reserved := "hugetlb."+l.Pagesize+".max", "hugetlb."+l.Pagesize+".rsvd.max"
		if version == 1 {
			file, reserved = "hugetlb."+l.Pagesize+".limit_in_bytes", "hugetlb."+l.Pagesize+".rsvd.limit_in_bytes"
		}
		c.add(field, "hugetlb", file, l.Limit)
		c.add(field, "hugetlb", reserved, l.Limit)
		c.changes[len(c.changes)-1].optional = true // kernel 5.7
	}
	return nil
}

func (c *compiler) network(r *specs.LinuxResources) error {
	if r.Network == nil {
		return nil
	}
	if id := r.Network.ClassID; id != nil && *id != 0 {
		if c.version("net_cls") != 1 {
			return refuse("network.classID", "the host has no net_cls controller")
		}
		c.add("network.classID", "net_cls", "net_cls.classid", *id)
	}
	for i, p := range r.Network.Priorities {
		field := fmt.Sprintf("network.priorities[%d]", i)
		if c.version("net_prio") != 1 {
			return refuse(field, "the host has no net_prio controller")
		}
		c.addKeyed(field, "net_prio", "net_prio.ifpriomap", fmt.Sprintf("%s %d", p.Name, p.Priority))
	}
	return nil
}

func (c *compiler) rdma(r *specs.LinuxResources) error {
	for _, device := range slices.Sorted(maps.Keys(r.Rdma)) {
		field := "rdma." + device
		if _, err := c.need("rdma", field); err != nil {
			return err
		}
		value := device
		if n := r.Rdma[device].HcaHandles; n != nil {
			value += fmt.Sprintf(" hca_handle=%d", *n)
		}
		if n := r.Rdma[device].HcaObjects; n != nil {
			value += fmt.Sprintf(" hca_object=%d", *n)
		}
		c.addKeyed(field, "rdma", "rdma.max", value)
	}
	return nil
}

// unified adds raw cgroup2 files, which come last and so win over the other
// fields. A value may have several lines, each of which is one write.
func (c *compiler) unified(r *specs.LinuxResources) error {
	for _, file := range slices.Sorted(maps.Keys(r.Unified)) {
		field := "unified." + file
		if !c.hybrid {
			return refuse(field, "the host has no cgroup v2")
		}
		controller, _, ok := strings.Cut(file, ".")
		if !ok || strings.ContainsAny(file, "/\x00\n") {
			return refuse(field, "not the name of a cgroup v2 file")
		}
		if err := unifiedAllowed(file); err != nil {
			return refuse(field, "%w", err)
		}
		if c.version(controller) != 2 {
			if controller != "cgroup" {
				return refuse(field, "the host has no cgroup v2 controller %s", controller)
			}
			controller = ""
		}
		lines := strings.Split(strings.TrimRight(r.Unified[file], "\n"), "\n")
		for _, line := range lines {
			if len(lines) == 1 && strings.Count(line, "=") == 0 {
				c.add(field, controller, file, line)
				continue
			}
			c.addKeyed(field, controller, file, line)
		}
	}
	return nil
}

// unifiedAllowed refuses files that are no limits: writing them would move,
// kill or freeze processes, or hand the group's subtree to others.
func unifiedAllowed(file string) error {
	switch file {
	case "cgroup.procs", "cgroup.threads", "cgroup.kill", "cgroup.freeze", "cgroup.type", "cgroup.subtree_control":
		return errors.New("not a limit")
	}
	return nil
}
