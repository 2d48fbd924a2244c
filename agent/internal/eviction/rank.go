package eviction

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Disk is what something takes of a file system.
type Disk struct{ Bytes, Inodes int64 }

func (d Disk) plus(o Disk) Disk { return Disk{d.Bytes + o.Bytes, d.Inodes + o.Inodes} }

// Usage is what a pod uses.
type Usage struct {
	Pod        *corev1.Pod
	Memory     int64 // working set
	Processes  int64
	Containers map[string]Container
	Volumes    map[string]Disk // its emptyDirs on disk, by name
}

// Container is what one container uses.
type Container struct {
	Memory         int64
	Writable, Logs Disk
}

func (c Container) disk() Disk { return c.Writable.plus(c.Logs) }

// SystemCritical is the priority of the class system-cluster-critical, the least of
// pods that are critical.
const SystemCritical = 2000000000

// Critical tells whether a pod is never evicted.
func Critical(pod *corev1.Pod) bool {
	return pod.Spec.Priority != nil && *pod.Spec.Priority >= SystemCritical
}

// Admits tells whether a pod may start on a node that has the conditions: not if
// it could add to what the node is short of.
func Admits(pod *corev1.Pod, bestEffort bool, conditions []corev1.NodeConditionType) bool {
	if len(conditions) == 0 || Critical(pod) {
		return true
	}
	if len(conditions) > 1 || conditions[0] != corev1.NodeMemoryPressure {
		return false
	}
	taint := corev1.Taint{Key: corev1.TaintNodeMemoryPressure, Effect: corev1.TaintEffectNoSchedule}
	return !bestEffort || slices.ContainsFunc(pod.Spec.Tolerations, func(t corev1.Toleration) bool { return tolerates(t, taint) })
}

func tolerates(t corev1.Toleration, taint corev1.Taint) bool {
	effect := t.Effect == "" || t.Effect == taint.Effect
	key := t.Key == taint.Key || t.Key == "" && t.Operator == corev1.TolerationOpExists
	return effect && key && (t.Operator == corev1.TolerationOpExists || t.Value == taint.Value)
}

func priority(pod *corev1.Pod) int32 {
	if pod.Spec.Priority == nil {
		return 0
	}
	return *pod.Spec.Priority
}

// Host says how the node's file systems are laid out.
type Host struct {
	// OwnImageFs: images, and what containers write, are on another file system
	// than volumes and logs.
	OwnImageFs bool
}

// Rank orders the pods that may go for a threshold, the first to go first: those
// that use more than they requested, then those of less priority, then those
// that use most beyond their request. Processes have no request. A pod that
// would free nothing does not stand in the list.
func (h Host) Rank(s Signal, pods []Usage) []Usage {
	type entry struct {
		Usage
		used, beyond int64
	}
	var list []entry
	for _, u := range pods {
		used := h.used(s, u)
		if Critical(u.Pod) || used <= 0 {
			continue
		}
		list = append(list, entry{u, used, used - requested(u.Pod, s.Resource())})
	}
	slices.SortStableFunc(list, func(a, b entry) int {
		exceeds := 0
		if s != PidsAvailable {
			exceeds = bit(b.beyond > 0) - bit(a.beyond > 0)
		}
		return cmp.Or(exceeds, cmp.Compare(priority(a.Pod), priority(b.Pod)), cmp.Compare(b.beyond, a.beyond),
			strings.Compare(key(a.Pod), key(b.Pod)))
	})
	out := make([]Usage, 0, len(list))
	for _, e := range list {
		out = append(out, e.Usage)
	}
	return out
}

func key(pod *corev1.Pod) string { return pod.Namespace + "/" + pod.Name }

// used is what a pod uses of what the signal measures.
func (h Host) used(s Signal, u Usage) int64 {
	switch s {
	case MemoryAvailable, AllocatableMemory:
		return u.Memory
	case PidsAvailable:
		return u.Processes
	}
	var d Disk
	image := s == ImageFsAvailable || s == ImageFsInodes
	if !image || !h.OwnImageFs {
		for _, v := range u.Volumes {
			d = d.plus(v)
		}
	}
	for _, c := range u.Containers {
		d = d.plus(h.container(s, c))
	}
	return of(s, d)
}

func (h Host) container(s Signal, c Container) Disk {
	switch {
	case !h.OwnImageFs:
		return c.disk()
	case s == ImageFsAvailable || s == ImageFsInodes:
		return c.Writable
	}
	return c.Logs
}

func of(s Signal, d Disk) int64 {
	if s == NodeFsInodes || s == ImageFsInodes {
		return d.Inodes
	}
	return d.Bytes
}

// Message is what an evicted pod's status says, in the kubelet's words.
func (h Host) Message(m Met, u Usage) string {
	var text strings.Builder
	fmt.Fprintf(&text, "The node was low on resource: %s. Threshold quantity: %s, available: %s. ",
		m.Resource(), m.quantity(m.limit()), m.quantity(m.Available))
	for _, c := range u.Pod.Spec.Containers {
		used, ok := u.Containers[c.Name]
		n := used.Memory
		if m.Signal.Disk() {
			n = of(m.Signal, h.container(m.Signal, used))
		}
		request := c.Resources.Requests[m.Resource()]
		if !ok || m.Signal == PidsAvailable || n <= request.Value() {
			continue
		}
		fmt.Fprintf(&text, "Container %s was using %s, request is %s, has larger consumption of %s. ",
			c.Name, m.quantity(n), request.String(), m.Resource())
	}
	return text.String()
}

// requested is a pod's request: of all its containers, or what one init
// container beside the sidecars before it needs, if that is more.
func requested(pod *corev1.Pod, name corev1.ResourceName) int64 {
	n, _ := total(pod, name, func(r corev1.ResourceRequirements) corev1.ResourceList { return r.Requests })
	return n
}

// total sums up requests or limits; any tells whether a container has one.
func total(pod *corev1.Pod, name corev1.ResourceName, list func(corev1.ResourceRequirements) corev1.ResourceList) (sum int64, any bool) {
	if pod.Spec.Resources != nil {
		if q, ok := list(*pod.Spec.Resources)[name]; ok {
			return q.Value(), true
		}
	}
	var sidecars, most int64
	get := func(c *corev1.Container) int64 {
		q, ok := list(c.Resources)[name]
		any = any || ok
		return q.Value()
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		n := get(c)
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			sidecars += n
			n = 0
		}
		most = max(most, sidecars+n)
	}
	for i := range pod.Spec.Containers {
		sum += get(&pod.Spec.Containers[i])
	}
	sum = max(sum+sidecars, most)
	overhead := pod.Spec.Overhead[name]
	return sum + overhead.Value(), any
}

func bytes(n int64) string { return resource.NewQuantity(n, resource.BinarySI).String() }
