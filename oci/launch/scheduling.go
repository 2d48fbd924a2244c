package launch

import (
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// scheduler sets process.scheduler and process.ioPriority, and linux.memoryPolicy.
func (c *compiler) scheduler() {
	if s := c.proc.Scheduler; s != nil {
		attr, err := schedAttr(s)
		if err != nil {
			c.fail(fmt.Errorf("process.scheduler.%w", err))
			return
		}
		c.do("set scheduler "+string(s.Policy), cSchedSetattr, c.put(attr))
	}
	if p := c.proc.IOPriority; p != nil {
		class, ok := ioClasses[p.Class]
		if !ok || p.Priority < 0 || p.Priority > 7 {
			c.fail(fmt.Errorf("process.ioPriority: class %q, priority %d is unknown", p.Class, p.Priority))
			return
		}
		c.do("set I/O priority", cIoprioSet, class<<13|p.Priority)
	}
	c.memoryPolicy()
}

var ioClasses = map[specs.IOPriorityClass]int{
	specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3,
}

var schedPolicies = map[specs.LinuxSchedulerPolicy]uint32{
	specs.SchedOther: 0, specs.SchedFIFO: 1, specs.SchedRR: 2, specs.SchedBatch: 3,
	specs.SchedISO: 4, specs.SchedIdle: 5, specs.SchedDeadline: 6,
}

var schedFlags = map[specs.LinuxSchedulerFlag]uint64{
	specs.SchedFlagResetOnFork: 0x01, specs.SchedFlagReclaim: 0x02, specs.SchedFlagDLOverrun: 0x04,
	specs.SchedFlagKeepPolicy: 0x08, specs.SchedFlagKeepParams: 0x10,
	specs.SchedFlagUtilClampMin: 0x20, specs.SchedFlagUtilClampMax: 0x40,
}

func schedAttr(s *specs.Scheduler) (a unix.SchedAttr, err error) {
	policy, ok := schedPolicies[s.Policy]
	if !ok {
		return a, fmt.Errorf("policy: %q is unknown", s.Policy)
	}
	a = unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: policy, Nice: s.Nice, Priority: uint32(s.Priority),
		Runtime: s.Runtime, Deadline: s.Deadline, Period: s.Period,
	}
	for _, f := range s.Flags {
		bit, ok := schedFlags[f]
		if !ok {
			return a, fmt.Errorf("flags: %q is unknown", f)
		}
		a.Flags |= bit
	}
	return a, nil
}

// personality sets linux.personality.
func (c *compiler) personality() {
	p := c.spec.Linux.Personality
	if p == nil {
		return
	}
	if len(p.Flags) > 0 {
		c.fail(fmt.Errorf("linux.personality.flags: not supported"))
		return
	}
	domain := map[specs.LinuxPersonalityDomain]int{specs.PerLinux: 0, specs.PerLinux32: 8}
	d, ok := domain[p.Domain]
	if !ok {
		c.fail(fmt.Errorf("linux.personality.domain: %q is unknown", strings.ToUpper(string(p.Domain))))
		return
	}
	c.do("set personality", cPersonality, d)
}
