package agent

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"podstead/agent/internal/eviction"
)

// Reservations say how much of the node is not for pods.
type Reservations struct {
	// System and Kube are what other programs of the host and the node's own need
	// of cpu, memory, ephemeral-storage and pid.
	System, Kube corev1.ResourceList
	// SystemCgroup and KubeCgroup are bounded by them, if that is enforced.
	SystemCgroup, KubeCgroup   string
	EnforceSystem, EnforceKube Enforcement
	// EnforcePods bounds all pods together by what is left.
	EnforcePods bool
	MaxPods     int // 0: not bounded
	PodsPerCore int // 0: not bounded
}

// Enforcement of a reservation on the cgroup of those for whom it is made.
type Enforcement int

// Enforcements: none, of cpu alone, of all.
const (
	EnforceNone Enforcement = iota
	EnforceCompressible
	EnforceAll
)

// maxPods is the kubelet's default.
const maxPods = 110

// capacity is what the node has. Disk space is that of the pods' directories.
func capacity(cpu, memory resource.Quantity, dir string, r Reservations) corev1.ResourceList {
	all := corev1.ResourceList{corev1.ResourceCPU: cpu, corev1.ResourceMemory: memory}
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) == nil {
		all[corev1.ResourceEphemeralStorage] = *resource.NewQuantity(int64(fs.Blocks)*fs.Bsize, resource.BinarySI)
	}
	used := int64(0)
	for size, n := range hugePages(hugePagesDir) {
		name := corev1.ResourceName(corev1.ResourceHugePagesPrefix + resource.NewQuantity(size, resource.BinarySI).String())
		all[name] = *resource.NewQuantity(size*n, resource.BinarySI)
		used += size * n
	}
	memory = memory.DeepCopy()
	memory.Sub(*resource.NewQuantity(used, resource.BinarySI))
	all[corev1.ResourceMemory] = memory // pages that are huge are nothing else
	pods := int64(r.MaxPods)
	if n := cpu.Value() * int64(r.PodsPerCore); n > 0 && (pods == 0 || n < pods) {
		pods = n
	}
	if pods > 0 {
		all[corev1.ResourcePods] = *resource.NewQuantity(pods, resource.DecimalSI)
	}
	return all
}

const hugePagesDir = "/sys/kernel/mm/hugepages"

// hugePages are the sizes of huge pages of the machine, in bytes, and how many of
// each the host has set aside.
func hugePages(dir string) map[int64]int64 {
	out := map[int64]int64{}
	entries, _ := os.ReadDir(dir) // a kernel without them has none
	for _, e := range entries {
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		data, _ := os.ReadFile(filepath.Join(dir, e.Name(), "nr_hugepages"))
		n, _ := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
		out[kib<<10] = n
	}
	return out
}

// reservedCPU is what the reservations leave no pod.
func reservedCPU(r Reservations) resource.Quantity {
	q := r.System.Cpu().DeepCopy()
	q.Add(*r.Kube.Cpu())
	return q
}

// reserved is what the reservations leave, and with what eviction keeps free it
// is what pods may request.
func reserved(all corev1.ResourceList, r Reservations) corev1.ResourceList {
	return less(less(all, r.System), r.Kube)
}

func allocatable(all corev1.ResourceList, r Reservations, p eviction.Policy) corev1.ResourceList {
	return less(reserved(all, r), p.Reserved(all))
}

func less(all, minus corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{}
	for name, q := range all {
		q = q.DeepCopy()
		q.Sub(minus[name])
		if q.Sign() < 0 {
			q = *resource.NewQuantity(0, q.Format)
		}
		out[name] = q
	}
	return out
}

// bound bounds all pods together, and those for whom something is reserved.
func (c *cgroups) bound(r Reservations, all corev1.ResourceList) error {
	if c.off() {
		return nil
	}
	left := all
	if r.EnforcePods {
		left = reserved(all, r)
	}
	limits := &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: sharesOf(left)}}
	if m := left.Memory().Value(); r.EnforcePods && m < all.Memory().Value() {
		limits.Memory = &specs.LinuxMemory{Limit: &m}
	}
	g := c.hierarchy.Group(c.path())
	if err := c.set(g, limits); err != nil {
		if limits.Memory == nil {
			return err
		}
		// Pods of before use more than that; eviction will bring it down.
		c.log.Warn("memory of all pods together is not bounded yet", "error", err)
	}
	if err := c.enforce("systemReservedCgroup", r.SystemCgroup, r.System, r.EnforceSystem); err != nil {
		return err
	}
	return c.enforce("kubeReservedCgroup", r.KubeCgroup, r.Kube, r.EnforceKube)
}

// enforce gives a cgroup that there is what is reserved for it, and no more.
func (c *cgroups) enforce(field, name string, list corev1.ResourceList, e Enforcement) error {
	if e == EnforceNone {
		return nil
	}
	g := c.hierarchy.Group(path.Join("/", name))
	if !g.Exists() {
		return fmt.Errorf("%s: there is no cgroup %s", field, g.Path())
	}
	r := &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: sharesOf(list)}}
	if e == EnforceAll {
		if m := list.Memory().Value(); m > 0 {
			r.Memory = &specs.LinuxMemory{Limit: &m}
		}
		if pids := list[reservedPids]; pids.Value() > 0 {
			n := pids.Value()
			r.Pids = &specs.LinuxPids{Limit: &n}
		}
	}
	if err := g.Set(r); err != nil {
		return fmt.Errorf("%s: cgroup %s: %w", field, g.Path(), err)
	}
	return nil
}

// reservedPids is the name under which processes are reserved.
const reservedPids corev1.ResourceName = "pid"

func sharesOf(list corev1.ResourceList) *uint64 {
	n := uint64(min(max(list.Cpu().MilliValue()*1024/1000, 2), 262144))
	return &n
}

// used is what all pods together use of memory, as eviction counts it.
func (c *cgroups) used() (int64, error) {
	stats, err := c.hierarchy.Group(c.path()).Stats()
	return int64(stats.WorkingSetBytes), err
}
