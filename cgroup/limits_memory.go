package cgroup

import (
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func (c *compiler) memory(r *specs.LinuxResources) error {
	m := r.Memory
	if m == nil {
		return nil
	}
	if m.Kernel != nil && *m.Kernel > 0 {
		return refuse("memory.kernel", "kernels have no such limit any more")
	}
	for _, f := range []struct {
		name  string
		value *int64
	}{{"limit", m.Limit}, {"reservation", m.Reservation}, {"swap", m.Swap}, {"kernelTCP", m.KernelTCP}} {
		if f.value == nil || *f.value == 0 {
			continue
		}
		if *f.value < -1 {
			return refuse("memory."+f.name, "%d is neither a size nor -1", *f.value)
		}
		if _, err := c.need("memory", "memory."+f.name); err != nil {
			return err
		}
	}
	if err := c.checkUsage(m); err != nil {
		return err
	}
	switch {
	case c.version("memory") == 2:
		return c.memoryV2(m)
	case m.Swappiness != nil || isTrue(m.DisableOOMKiller) || isSet(m.Limit) || isSet(m.Reservation) ||
		isSet(m.Swap) || isSet(m.KernelTCP):
		return c.memoryV1(m)
	}
	return nil
}

func isTrue(b *bool) bool { return b != nil && *b }

func isSet(n *int64) bool { return n != nil && *n != 0 }

// makeRoom has the kernel free what it can before a new limit is compared with
// what is in use (see checkUsage): caches, which would be freed to keep it. v1
// does so itself, and refuses a limit that it cannot bring about.
func (g *Group) makeRoom(m *specs.LinuxMemory) {
	if m == nil || !isTrue(m.CheckBeforeUpdate) || !isSet(m.Limit) || *m.Limit < 0 || g.h.version("memory") != 2 {
		return
	}
	usage, err := readUint(g.dir("memory") + "/memory.current")
	if limit := uint64(*m.Limit); err == nil && usage > limit {
		// It fails if less than that can be freed, and there is no such file
		// before kernel 5.19. What is in use then decides.
		_ = writeFile(g.dir("memory")+"/memory.reclaim", strconv.FormatUint(usage-limit, 10))
	}
}

// checkUsage refuses a limit below what is in use, if that was asked for: the
// kernel would kill processes until it fits.
func (c *compiler) checkUsage(m *specs.LinuxMemory) error {
	if !isTrue(m.CheckBeforeUpdate) || !isSet(m.Limit) || *m.Limit < 0 {
		return nil
	}
	file := "memory.usage_in_bytes"
	if c.version("memory") == 2 {
		file = "memory.current"
	}
	s, err := c.current("memory", file)
	if err != nil {
		return refuse("memory.limit", "%w", err)
	}
	if usage, err := strconv.ParseInt(s, 10, 64); err != nil || usage > *m.Limit {
		return refuse("memory.limit", "%d is less than the %s bytes in use", *m.Limit, s)
	}
	return nil
}

func (c *compiler) memoryV1(m *specs.LinuxMemory) error {
	if _, err := c.need("memory", "memory"); err != nil {
		return err
	}
	if isSet(m.Limit) && isSet(m.Swap) && *m.Swap > 0 && (*m.Swap < *m.Limit || *m.Limit < 0) {
		return refuse("memory.swap", "%d is less than memory.limit, which it includes", *m.Swap)
	}
	swap := m.Swap
	if isSet(m.Limit) && *m.Limit < 0 && !isSet(swap) {
		swap = m.Limit // no limit at all: there is one with swap otherwise
	}
	addSet(c, "memory.limit", "memory", "memory.limit_in_bytes", m.Limit)
	if isSet(swap) {
		c.add("memory.swap", "memory", "memory.memsw.limit_in_bytes", *swap)
		c.changes[len(c.changes)-1].optional = *swap < 0
	}
	addSet(c, "memory.reservation", "memory", "memory.soft_limit_in_bytes", m.Reservation)
	addSet(c, "memory.kernelTCP", "memory", "memory.kmem.tcp.limit_in_bytes", m.KernelTCP)
	if m.Swappiness != nil {
		c.add("memory.swappiness", "memory", "memory.swappiness", *m.Swappiness)
	}
	if isTrue(m.DisableOOMKiller) {
		// The file shows more than it takes, so its old value cannot be put back.
		c.addKeyed("memory.disableOOMKiller", "memory", "memory.oom_control", "1")
	}
	return nil
}

func (c *compiler) memoryV2(m *specs.LinuxMemory) error {
	switch {
	case isSet(m.KernelTCP) && *m.KernelTCP > 0:
		return refuse("memory.kernelTCP", "cgroup v2 has no such limit")
	case m.Swappiness != nil:
		return refuse("memory.swappiness", "cgroup v2 has no such value")
	case isTrue(m.DisableOOMKiller):
		return refuse("memory.disableOOMKiller", "cgroup v2 cannot")
	}
	if err := c.swapV2(m); err != nil {
		return err
	}
	if isSet(m.Limit) {
		c.add("memory.limit", "memory", "memory.max", limitV2(*m.Limit))
	}
	if isSet(m.Reservation) {
		c.add("memory.reservation", "memory", "memory.low", limitV2(*m.Reservation))
	}
	return nil
}

// swapV2 splits swap off the specification's sum of memory and swap.
func (c *compiler) swapV2(m *specs.LinuxMemory) error {
	swap := int64(0)
	if m.Swap != nil {
		swap = *m.Swap
	}
	limit := int64(0)
	switch {
	case isSet(m.Limit):
		limit = *m.Limit
	case swap > 0:
		s, err := c.current("memory", "memory.max")
		if err != nil {
			return refuse("memory.swap", "%w", err)
		}
		if limit, err = strconv.ParseInt(s, 10, 64); err != nil {
			return refuse("memory.swap", "%d includes memory, but memory.limit is neither given nor set", swap)
		}
	}
	value := ""
	switch {
	case swap < 0 || swap == 0 && limit < 0:
		value = "max"
	case swap == 0:
		return nil
	case limit < 0:
		value = strconv.FormatInt(swap, 10)
	case swap < limit:
		return refuse("memory.swap", "%d is less than memory.limit (%d), which it includes", swap, limit)
	default:
		value = strconv.FormatInt(swap-limit, 10)
	}
	c.add("memory.swap", "memory", "memory.swap.max", value)
	c.changes[len(c.changes)-1].optional = value == "max"
	return nil
}
