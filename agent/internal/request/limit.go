package request

import (
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/eviction"
)

// CPU says how limits of cpu are put into force.
type CPU struct {
	NoQuota bool          // they are not
	Period  time.Duration // of which a limit is a part; 0: 100ms
}

// Quota is a limit that is given in microseconds of 100ms, and its period; 0 is no
// limit.
func (c CPU) Quota(of100ms int64) (quota, period int64) {
	period = quotaPeriod
	if c.Period > 0 {
		period = c.Period.Microseconds()
	}
	if of100ms <= 0 || c.NoQuota {
		return 0, period
	}
	return max(of100ms*period/quotaPeriod, minQuota), period
}

// Memory says what containers have beside their limit of memory.
type Memory struct {
	V2 bool // what cgroup v1 does not have can be set
	// OneByOne: the kernel's OOM killer ends a process, not its container.
	OneByOne bool
	// Swap is NoSwap, LimitedSwap, by a container's share of the node's memory, or "":
	// as much as there is. SwapBytes is what the node has.
	Swap      string
	SwapBytes int64
	// Throttle: containers of which the limit of memory is not what they request are
	// slowed down when they use what they request and this part of what is between; 0:
	// they are not. Without a limit, Allocatable is it: the node's, for pods.
	Throttle    float64
	Allocatable int64
	// Reserve: the kernel takes no memory that guaranteed pods request from them, and
	// that which burstable pods request only if it finds no other.
	Reserve bool
}

// Values of Memory.Swap, the kubelet's.
const (
	NoSwap      = "NoSwap"
	LimitedSwap = "LimitedSwap"
)

// memory adds what CRI says of memory beside the limit.
func (n Node) memory(pod *corev1.Pod, c *corev1.Container, r *runtimeapi.LinuxContainerResources) {
	m := n.Memory
	if !m.V2 {
		if m.Swap != "" && r.MemoryLimitInBytes > 0 { // with less there is none to give
			r.MemorySwapLimitInBytes = r.MemoryLimitInBytes
		}
		return
	}
	r.Unified = map[string]string{}
	if !m.OneByOne {
		r.Unified["memory.oom.group"] = "1"
	}
	n.quality(pod, c, r)
	switch m.Swap {
	case NoSwap:
		r.Unified["memory.swap.max"] = "0"
	case LimitedSwap:
		r.Unified["memory.swap.max"] = strconv.FormatInt(n.swap(pod, c), 10)
	}
}

// quality adds the kubelet's MemoryQoS (KEP-2570), which cgroup v2 alone has.
func (n Node) quality(pod *corev1.Pod, c *corev1.Container, r *runtimeapi.LinuxContainerResources) {
	request := c.Resources.Requests.Memory().Value()
	if n.Memory.Throttle > 0 {
		r.Unified["memory.high"] = n.high(request, r.MemoryLimitInBytes)
	}
	for file, value := range n.reserve(QoS(pod), request) {
		r.Unified[file] = value
	}
}

// high is where a container is slowed down; "max" is nowhere.
func (n Node) high(request, limit int64) string {
	if request == limit {
		return "max"
	}
	if limit == 0 {
		limit = n.Memory.Allocatable
	}
	const page = 4096
	at := int64(float64(request)+float64(limit-request)*n.Memory.Throttle) / page * page
	if at <= request {
		return "max"
	}
	return strconv.FormatInt(at, 10)
}

// reserve is what the kernel leaves to a group of a class that requests so much;
// nil if it is not told.
func (n Node) reserve(class corev1.PodQOSClass, request int64) map[string]string {
	if !n.Memory.Reserve || !n.Memory.V2 {
		return nil
	}
	r := Reservation{}
	switch class {
	case corev1.PodQOSGuaranteed:
		r.Min = request
	case corev1.PodQOSBurstable:
		r.Low = request
	}
	return r.Unified()
}

// Reservation is memory that the kernel leaves to a group.
type Reservation struct {
	Min int64 // whatever comes
	Low int64 // as long as it finds other
}

// Unified are the files of cgroup v2 for it.
func (r Reservation) Unified() map[string]string {
	return map[string]string{"memory.min": strconv.FormatInt(r.Min, 10), "memory.low": strconv.FormatInt(r.Low, 10)}
}

// PodReservation is for the pod's own group; nil if there is none.
func (n Node) PodReservation(pod *corev1.Pod) map[string]string {
	requests := Requests(pod)
	return n.reserve(QoS(pod), requests.Memory().Value())
}

// Reservations are those of all pods together, and of the burstable ones.
func Reservations(pods map[string]*corev1.Pod) (all, burstable Reservation) {
	for _, pod := range pods {
		requests := Requests(pod)
		switch QoS(pod) {
		case corev1.PodQOSGuaranteed:
			all.Min += requests.Memory().Value()
		case corev1.PodQOSBurstable:
			all.Low += requests.Memory().Value()
		}
	}
	return all, Reservation{Low: all.Low}
}

// swap is a burstable container's share, as the kubelet reckons it.
func (n Node) swap(pod *corev1.Pod, c *corev1.Container) int64 {
	request, limit := c.Resources.Requests.Memory().Value(), c.Resources.Limits.Memory().Value()
	if QoS(pod) != corev1.PodQOSBurstable || request == 0 || request == limit || eviction.Critical(pod) || n.MemoryBytes <= 0 {
		return 0
	}
	return int64(float64(request) / float64(n.MemoryBytes) * float64(n.Memory.SwapBytes))
}
