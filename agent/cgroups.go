package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/metric"
	"podstead/agent/internal/observe"
	"podstead/agent/internal/request"
	"podstead/cgroup"
	"podstead/cgroup/systemd"
)

// cgroups keeps the kubepods tree: kubepods/{burstable,besteffort}/podUID, and
// guaranteed pods right below kubepods. With the systemd driver, which the runtime
// has to have too, they are slices. Without a hierarchy the groups are the
// runtime's to make.
type cgroups struct {
	hierarchy *cgroup.Hierarchy
	root      string
	runDir    string // remembers that the tree is ours; "" for not
	systemd   bool
	pids      int64 // that a pod may have; 0: no limit
	reserve   bool  // the kernel is told what pods request of memory
	// keepOff are the hundredths of the memory that pods of better classes request
	// which those of the others may not use, of all that pods may have; 0: none.
	keepOff     int
	allocatable int64
	metrics     *metric.Metrics
	log         *slog.Logger
}

func (c *cgroups) off() bool { return c.hierarchy == nil }

// follow takes on the runtime's driver. Where its systemd cannot be reached from
// here, pods have no groups of ours.
func (c *cgroups) follow(systemdDriver bool) {
	c.systemd = systemdDriver
	if !systemdDriver || c.off() || c.hierarchy.Driven() {
		return
	}
	m := systemd.New(systemd.Options{})
	if err := m.Check(); err != nil {
		c.log.Warn("the runtime's cgroups are systemd's: pods get no limits of their own", "error", err)
		c.hierarchy = nil
		return
	}
	c.hierarchy = c.hierarchy.WithDriver(m)
}

func (c *cgroups) path(parts ...string) string {
	if c.systemd {
		parts = slices.DeleteFunc(parts, func(p string) bool { return p == "" })
		name := "kubepods"
		for _, p := range parts {
			name += "-" + strings.ReplaceAll(p, "-", "_") // a dash is a level
		}
		return name + ".slice"
	}
	return path.Join(append([]string{"/", c.root, "kubepods"}, parts...)...)
}

// prepare makes the upper groups.
func (c *cgroups) prepare() error {
	if c.off() {
		return nil
	}
	if !c.systemd && c.runDir != "" && !c.hierarchy.Group(c.path("")).Exists() {
		if err := os.WriteFile(c.mark(), []byte(c.path("")), 0o600); err != nil {
			return fmt.Errorf("remember whose cgroups these are: %w", err)
		}
	}
	for _, class := range []string{"", "burstable", "besteffort"} {
		g := c.hierarchy.Group(c.path(class))
		if err := g.Create(); err != nil {
			return fmt.Errorf("make cgroup %s: %w", g.Path(), err)
		}
	}
	return c.shares("besteffort", 2)
}

// mark is a file that names the upper group, if that was not there before: below a
// cgroupRoot it may be a kubelet's.
func (c *cgroups) mark() string { return filepath.Join(c.runDir, "kubepods") }

// leave removes the upper groups, if they are ours, once no pod is there any more.
func (c *cgroups) leave() error {
	if c.off() || c.runDir == "" {
		return nil
	}
	made, err := os.ReadFile(c.mark())
	if err != nil || string(made) != c.path("") {
		return nil
	}
	for _, class := range []string{"burstable", "besteffort", ""} {
		if err := c.hierarchy.Group(c.path(class)).RemoveEmpty(); err != nil {
			return err
		}
	}
	return os.Remove(c.mark())
}

func (c *cgroups) shares(class string, n uint64) error {
	g := c.hierarchy.Group(c.path(class))
	if err := g.Set(&specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &n}}); err != nil {
		return fmt.Errorf("cgroup %s: %w", g.Path(), err)
	}
	return nil
}

// share gives the burstable class the CPU that its pods request.
func (c *cgroups) share(pods map[string]*corev1.Pod) {
	if c.off() {
		return
	}
	total := int64(0)
	for _, pod := range pods {
		if request.QoS(pod) == corev1.PodQOSBurstable {
			total += request.PodResources(pod).CpuShares
		}
	}
	if err := c.shares("burstable", uint64(min(max(total, 2), 262144))); err != nil {
		c.log.Warn("share of burstable pods not set", "error", err)
	}
	if c.keepOff > 0 {
		if err := c.keepClassesOff(pods); err != nil {
			c.log.Warn("qosReserved: memory is not kept from pods of lower classes", "error", err)
		}
	}
	if c.reserve && c.hierarchy.Unified() {
		if err := c.reserveAll(pods); err != nil {
			c.log.Warn("memory is not reserved for pods", "error", err)
		}
	}
}

// pod makes a pod's group with the sum of its limits. While it is live these
// only change together with those of its containers, by grow and resize.
func (c *cgroups) pod(node request.Node, pod *corev1.Pod, live bool) error {
	if c.off() {
		return nil
	}
	g, began := c.hierarchy.Group(node.CgroupParent(pod)), time.Now()
	if err := g.Create(); err != nil {
		return fmt.Errorf("make cgroup %s: %w", g.Path(), err)
	}
	c.metrics.Cgroup("create", time.Since(began))
	var pids *specs.LinuxPids
	if c.pids > 0 {
		pids = &specs.LinuxPids{Limit: &c.pids}
	}
	if live {
		if pids == nil {
			return nil
		}
		return c.set(g, &specs.LinuxResources{Pids: pids})
	}
	r := podLimits(node.CPU, request.PodAmounts(pod), observe.Resources{})
	r.Pids, r.Unified = pids, node.PodReservation(pod)
	return c.set(g, r)
}

func (c *cgroups) set(g *cgroup.Group, r *specs.LinuxResources) error {
	began := time.Now()
	if err := g.Set(r); err != nil {
		return fmt.Errorf("cgroup %s: %w", g.Path(), err)
	}
	c.metrics.Cgroup("update", time.Since(began))
	return nil
}

// grow raises those limits of a pod's group that are to be higher.
func (c *cgroups) grow(node request.Node, pod *corev1.Pod, from observe.Resources) error {
	if c.off() {
		return nil
	}
	to := request.PodAmounts(pod)
	higher := func(from, to int64) int64 {
		if from == 0 || to == 0 {
			return 0 // without a limit is the highest
		}
		return max(from, to)
	}
	to.CPURequest = max(from.CPURequest, to.CPURequest)
	to.CPULimit = higher(from.CPULimit, to.CPULimit)
	to.MemoryLimit = higher(from.MemoryLimit, to.MemoryLimit)
	return c.set(c.hierarchy.Group(node.CgroupParent(pod)), podLimits(node.CPU, to, from))
}

// resize gives a pod's group its limits, whatever they were.
func (c *cgroups) resize(node request.Node, pod *corev1.Pod, from observe.Resources) error {
	if c.off() {
		return nil
	}
	r := podLimits(node.CPU, request.PodAmounts(pod), from)
	r.Unified = node.PodReservation(pod)
	return c.set(c.hierarchy.Group(node.CgroupParent(pod)), r)
}

// podLimits translates the amounts of request.PodAmounts. A limit that was there
// and is not any more is lifted.
func podLimits(cpu request.CPU, to, from observe.Resources) *specs.LinuxResources {
	quota, micros := cpu.Quota(to.CPULimit)
	shares, period, none := uint64(to.CPURequest), uint64(micros), int64(-1)
	r := &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}}
	switch {
	case quota > 0:
		r.CPU.Quota, r.CPU.Period = &quota, &period
	case from.CPULimit > 0:
		r.CPU.Quota, r.CPU.Period = &none, &period
	}
	switch {
	case to.MemoryLimit > 0:
		r.Memory = &specs.LinuxMemory{Limit: &to.MemoryLimit}
	case from.MemoryLimit > 0:
		r.Memory = &specs.LinuxMemory{Limit: &none}
	}
	return r
}

// remove removes a pod's group, wherever its class put it: an edit may have
// changed the class, and what is left of an orphan is not known.
func (c *cgroups) remove(ctx context.Context, uid string) error {
	if c.off() {
		return nil
	}
	for _, class := range []string{"", "burstable", "besteffort"} {
		g := c.hierarchy.Group(c.path(class, "pod"+uid))
		if !g.Exists() {
			continue
		}
		began := time.Now()
		if err := g.Kill(ctx); err != nil {
			return fmt.Errorf("kill what is left in cgroup %s: %w", g.Path(), err)
		}
		if err := g.Remove(ctx); err != nil {
			return fmt.Errorf("remove cgroup %s: %w", g.Path(), err)
		}
		c.metrics.Cgroup("destroy", time.Since(began))
	}
	return nil
}
