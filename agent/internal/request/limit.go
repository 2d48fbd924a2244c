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
	switch m.Swap {
	case NoSwap:
		r.Unified["memory.swap.max"] = "0"
	case LimitedSwap:
		r.Unified["memory.swap.max"] = strconv.FormatInt(n.swap(pod, c), 10)
	}
}

// swap is a burstable container's share, as the kubelet reckons it.
func (n Node) swap(pod *corev1.Pod, c *corev1.Container) int64 {
	request, limit := c.Resources.Requests.Memory().Value(), c.Resources.Limits.Memory().Value()
	if QoS(pod) != corev1.PodQOSBurstable || request == 0 || request == limit || eviction.Critical(pod) || n.MemoryBytes <= 0 {
		return 0
	}
	return int64(float64(request) / float64(n.MemoryBytes) * float64(n.Memory.SwapBytes))
}
