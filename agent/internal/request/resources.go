package request

import (
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	minShares   = 2
	maxShares   = 262144
	quotaPeriod = 100000 // microseconds
	minQuota    = 1000
)

// QoS classifies a pod by the cpu and memory of its containers.
func QoS(pod *corev1.Pod) corev1.PodQOSClass {
	any, guaranteed := false, true
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for _, c := range list {
			for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
				req, limit := c.Resources.Requests[name], c.Resources.Limits[name]
				any = any || !req.IsZero() || !limit.IsZero()
				guaranteed = guaranteed && !limit.IsZero() && req.Cmp(limit) == 0
			}
		}
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// CgroupParent is the pod's group in the kubepods tree, "" if there is none.
func (n Node) CgroupParent(pod *corev1.Pod) string {
	if !n.Cgroups {
		return ""
	}
	class := ""
	switch QoS(pod) {
	case corev1.PodQOSBurstable:
		class = "burstable"
	case corev1.PodQOSBestEffort:
		class = "besteffort"
	}
	if n.SystemdSlice {
		parts := []string{"kubepods"}
		if class != "" {
			parts = append(parts, class)
		}
		return strings.Join(append(parts, "pod"+strings.ReplaceAll(string(pod.UID), "-", "_")), "-") + ".slice"
	}
	return path.Join("/", n.CgroupRoot, "kubepods", class, "pod"+string(pod.UID))
}

// shares translates a CPU request.
func shares(q resource.Quantity) int64 {
	return min(max(q.MilliValue()*1024/1000, minShares), maxShares)
}

// quota translates a CPU limit, 0 for none.
func quota(q resource.Quantity) int64 {
	if q.IsZero() {
		return 0
	}
	return max(q.MilliValue()*quotaPeriod/1000, minQuota)
}

// oomScore is the kubelet's formula: the more memory a burstable container
// requests, the less likely it is to be killed for using it.
func (n Node) oomScore(pod *corev1.Pod, c *corev1.Container) int64 {
	switch QoS(pod) {
	case corev1.PodQOSGuaranteed:
		return -997
	case corev1.PodQOSBestEffort:
		return 1000
	}
	if n.MemoryBytes <= 0 {
		return 999
	}
	score := 1000 - 1000*c.Resources.Requests.Memory().Value()/n.MemoryBytes
	return min(max(score, 3), 999)
}

func (n Node) resources(pod *corev1.Pod, c *corev1.Container) *runtimeapi.LinuxContainerResources {
	return &runtimeapi.LinuxContainerResources{
		CpuShares:          shares(*c.Resources.Requests.Cpu()),
		CpuPeriod:          quotaPeriod,
		CpuQuota:           quota(*c.Resources.Limits.Cpu()),
		MemoryLimitInBytes: c.Resources.Limits.Memory().Value(),
		OomScoreAdj:        n.oomScore(pod, c),
	}
}

// PodResources is the sum for the pod's own group: requests add up, limits only
// if every container has one. Init containers run one after the other, but
// sidecars stay.
func PodResources(pod *corev1.Pod) *runtimeapi.LinuxContainerResources {
	sum := func(name corev1.ResourceName, of func(*corev1.Container) corev1.ResourceList) (total resource.Quantity, all bool) {
		all = true
		var sidecars, initMax resource.Quantity
		get := func(c *corev1.Container) resource.Quantity {
			q, ok := of(c)[name]
			all = all && ok && !q.IsZero()
			return q
		}
		for i := range pod.Spec.InitContainers {
			c := &pod.Spec.InitContainers[i]
			q := get(c)
			if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
				sidecars.Add(q)
				q = resource.Quantity{}
			}
			q.Add(sidecars)
			if q.Cmp(initMax) > 0 {
				initMax = q
			}
		}
		for i := range pod.Spec.Containers {
			total.Add(get(&pod.Spec.Containers[i]))
		}
		total.Add(sidecars)
		if initMax.Cmp(total) > 0 {
			total = initMax
		}
		return total, all
	}
	requests := func(c *corev1.Container) corev1.ResourceList { return c.Resources.Requests }
	limits := func(c *corev1.Container) corev1.ResourceList { return c.Resources.Limits }
	cpu, _ := sum(corev1.ResourceCPU, requests)
	r := &runtimeapi.LinuxContainerResources{CpuShares: shares(cpu), CpuPeriod: quotaPeriod}
	if q, all := sum(corev1.ResourceCPU, limits); all {
		r.CpuQuota = quota(q)
	}
	if q, all := sum(corev1.ResourceMemory, limits); all {
		r.MemoryLimitInBytes = q.Value()
	}
	return r
}
