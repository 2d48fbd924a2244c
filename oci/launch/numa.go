package launch

import (
	"fmt"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// parseList reads a list of CPUs or memory nodes, "0-2,5", into a bit mask of
// size bytes.
func parseList(s string, size int) ([]byte, error) {
	mask := make([]byte, size)
	for _, part := range strings.Split(s, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		first, err := strconv.ParseUint(from, 10, 31)
		if err != nil {
			return nil, fmt.Errorf("%q is no list of numbers", s)
		}
		last, err := strconv.ParseUint(to, 10, 31)
		if err != nil || last < first {
			return nil, fmt.Errorf("%q is no list of numbers", s)
		}
		if last >= uint64(8*size) {
			return nil, fmt.Errorf("%q has a number above %d", s, 8*size-1)
		}
		for n := first; n <= last; n++ {
			mask[n/8] |= 1 << (n % 8)
		}
	}
	return mask, nil
}

const maskSize = 128 // bytes: 1024 CPUs or nodes

// affinity sets one of process.execCPUAffinity.
func (c *compiler) affinity(field, cpus string) {
	if cpus == "" {
		return
	}
	mask, err := parseList(cpus, maskSize)
	if err != nil {
		c.fail(fmt.Errorf("process.execCPUAffinity.%s: %w", field, err))
		return
	}
	c.do("set CPU affinity to "+cpus, cSchedSetaffinity, maskSize, c.put(mask))
}

// checkAffinity finds what is wrong with process.execCPUAffinity, which has no
// effect on a container's first process, before somebody executes another.
func checkAffinity(a *specs.CPUAffinity) error {
	if a == nil {
		return nil
	}
	for field, cpus := range map[string]string{"initial": a.Initial, "final": a.Final} {
		if cpus == "" {
			continue
		}
		if _, err := parseList(cpus, maskSize); err != nil {
			return fmt.Errorf("process.execCPUAffinity.%s: %w", field, err)
		}
	}
	return nil
}

var memoryModes = map[specs.MemoryPolicyModeType]int{
	specs.MpolDefault: 0, specs.MpolPreferred: 1, specs.MpolBind: 2, specs.MpolInterleave: 3,
	specs.MpolLocal: 4, specs.MpolPreferredMany: 5, specs.MpolWeightedInterleave: 6,
}

var memoryFlags = map[specs.MemoryPolicyFlagType]int{
	specs.MpolFNumaBalancing: 1 << 13, specs.MpolFRelativeNodes: 1 << 14, specs.MpolFStaticNodes: 1 << 15,
}

// memoryPolicy sets linux.memoryPolicy.
func (c *compiler) memoryPolicy() {
	p := c.spec.Linux.MemoryPolicy
	if p == nil {
		return
	}
	mode, ok := memoryModes[p.Mode]
	if !ok {
		c.fail(fmt.Errorf("linux.memoryPolicy.mode: %q is unknown", p.Mode))
		return
	}
	for i, f := range p.Flags {
		bit, ok := memoryFlags[f]
		if !ok {
			c.fail(fmt.Errorf("linux.memoryPolicy.flags[%d]: %q is unknown", i, f))
			return
		}
		mode |= bit
	}
	var nodes any
	if p.Nodes != "" {
		mask, err := parseList(p.Nodes, maskSize)
		if err != nil {
			c.fail(fmt.Errorf("linux.memoryPolicy.nodes: %w", err))
			return
		}
		nodes = c.put(mask)
	}
	c.do("set memory policy "+string(p.Mode), cSetMempolicy, mode, nodes)
}

// timeNamespace makes a time namespace, which the child enters at execve. Its
// clocks can be set only until then.
func (c *compiler) timeNamespace() {
	offsets := c.spec.Linux.TimeOffsets
	if c.new&unix.CLONE_NEWTIME == 0 {
		if len(offsets) > 0 {
			c.fail(fmt.Errorf("linux.timeOffsets: needs a new time namespace"))
		}
		return
	}
	c.do("make a time namespace", cUnshare, unix.CLONE_NEWTIME)
	var text strings.Builder
	for _, clock := range []string{"monotonic", "boottime"} {
		if o, ok := offsets[clock]; ok {
			fmt.Fprintf(&text, "%s %d %d\n", clock, o.Secs, o.Nanosecs)
		}
	}
	for clock := range offsets {
		if clock != "monotonic" && clock != "boottime" {
			c.fail(fmt.Errorf("linux.timeOffsets[%q]: there is no such clock", clock))
		}
	}
	if text.Len() > 0 {
		f := c.get("set time offsets", cOpenat, unix.AT_FDCWD, "/proc/self/timens_offsets", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		c.do("set time offsets", cWrite, f, text.String(), text.Len())
	}
}
