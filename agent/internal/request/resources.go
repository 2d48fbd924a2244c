package request

import (
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/eviction"
	"podstead/agent/internal/observe"
)

const (
	minShares   = 2
	maxShares   = 262144
	quotaPeriod = 100000 // microseconds
	minQuota    = 1000
)

// QoS classifies a pod by its own cpu and memory, or if it has none, by those of
// its containers.
func QoS(pod *corev1.Pod) corev1.PodQOSClass {
	any, guaranteed := false, true
	judge := func(r corev1.ResourceRequirements) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			req, limit := r.Requests[name], r.Limits[name]
			any = any || !req.IsZero() || !limit.IsZero()
			guaranteed = guaranteed && !limit.IsZero() && req.Cmp(limit) == 0
		}
	}
	if r := pod.Spec.Resources; r != nil {
		judge(*r)
	} else {
		for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
			for _, c := range list {
				judge(c.Resources)
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
// requests, the less likely it is to be killed for using it. What the pod
// requests beyond its containers is shared among them; a sidecar is not killed
// before the others.
func (n Node) oomScore(pod *corev1.Pod, c *corev1.Container) int64 {
	if nodeCritical(pod) {
		return -997
	}
	switch QoS(pod) {
	case corev1.PodQOSGuaranteed:
		return -997
	case corev1.PodQOSBestEffort:
		return 1000
	}
	if n.MemoryBytes <= 0 {
		return 999
	}
	share := int64(0)
	if r := pod.Spec.Resources; r != nil && !r.Requests.Memory().IsZero() {
		of := resourcehelper.AggregateContainerRequests(pod, resourcehelper.PodResourcesOptions{})
		share = (r.Requests.Memory().Value() - of.Memory().Value()) / int64(len(pod.Spec.Containers)+len(pod.Spec.InitContainers))
	}
	memory := c.Resources.Requests.Memory().Value()
	if sidecar(pod, c) {
		least := pod.Spec.Containers[0].Resources.Requests.Memory().Value()
		for i := range pod.Spec.Containers {
			least = min(least, pod.Spec.Containers[i].Resources.Requests.Memory().Value())
		}
		memory = max(memory, least)
	}
	return min(max(1000-1000*(memory+share)/n.MemoryBytes, 3), 999)
}

// nodeCritical tells whether the node is of no use without the pod.
func nodeCritical(pod *corev1.Pod) bool {
	return pod.Spec.PriorityClassName == "system-node-critical" && eviction.Critical(pod)
}

func sidecar(pod *corev1.Pod, c *corev1.Container) bool {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == c.Name {
			return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		}
	}
	return false
}

// Resources are a container's; where it has no limit, the pod's own is its, too.
func (n Node) Resources(pod *corev1.Pod, c *corev1.Container) *runtimeapi.LinuxContainerResources {
	cpu, memory := *c.Resources.Limits.Cpu(), *c.Resources.Limits.Memory()
	if r := pod.Spec.Resources; r != nil {
		if cpu.IsZero() {
			cpu = *r.Limits.Cpu()
		}
		if memory.IsZero() {
			memory = *r.Limits.Memory()
		}
	}
	r := &runtimeapi.LinuxContainerResources{
		CpuShares:          shares(*c.Resources.Requests.Cpu()),
		MemoryLimitInBytes: memory.Value(),
		OomScoreAdj:        n.oomScore(pod, c),
		HugepageLimits:     hugePages(c.Resources.Limits, n.HugePages),
	}
	r.CpuQuota, r.CpuPeriod = n.CPU.Quota(quota(cpu))
	n.memory(pod, c, r)
	return r
}

// PodResources are for the pod's own group: its own if it has some, else the
// sum: requests add up, limits only if every container has one. Init containers
// run one after the other, but sidecars stay.
//
// The overhead of its RuntimeClass comes on top.
func PodResources(pod *corev1.Pod) *runtimeapi.LinuxContainerResources {
	return podResources(pod, resourcehelper.PodResourcesOptions{})
}

func podResources(pod *corev1.Pod, o resourcehelper.PodResourcesOptions) *runtimeapi.LinuxContainerResources {
	requests := resourcehelper.PodRequests(pod, o)
	limits := resourcehelper.PodLimits(pod, o)
	cpu, memory := true, true
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			cpu = cpu && !list[i].Resources.Limits.Cpu().IsZero()
			memory = memory && !list[i].Resources.Limits.Memory().IsZero()
		}
	}
	if r := pod.Spec.Resources; r != nil {
		cpu = cpu || !r.Limits.Cpu().IsZero()
		memory = memory || !r.Limits.Memory().IsZero()
	}
	r := &runtimeapi.LinuxContainerResources{CpuShares: shares(*requests.Cpu()), CpuPeriod: quotaPeriod}
	if cpu {
		r.CpuQuota = quota(*limits.Cpu())
	}
	if memory {
		r.MemoryLimitInBytes = limits.Memory().Value()
	}
	r.HugepageLimits = hugePages(limits, nil)
	return r
}

// PodResources are what the runtime is told of, beside the overhead.
func (n Node) PodResources(pod *corev1.Pod) *runtimeapi.LinuxContainerResources {
	r := podResources(pod, resourcehelper.PodResourcesOptions{ExcludeOverhead: true})
	r.CpuQuota, r.CpuPeriod = n.CPU.Quota(r.CpuQuota)
	return r
}

// Requests are what a pod needs of the node to run.
func Requests(pod *corev1.Pod) corev1.ResourceList {
	return resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
}

// Amounts are a container's cpu and memory as they are compared.
func Amounts(pod *corev1.Pod, c *corev1.Container) observe.Resources {
	r := c.Resources
	out := observe.Resources{
		CPURequest: r.Requests.Cpu().MilliValue(), CPULimit: r.Limits.Cpu().MilliValue(),
		MemoryRequest: r.Requests.Memory().Value(), MemoryLimit: r.Limits.Memory().Value(),
	}
	if p := pod.Spec.Resources; p != nil { // that holds for the container, too
		if out.CPULimit == 0 {
			out.CPULimit = p.Limits.Cpu().MilliValue()
		}
		if out.MemoryLimit == 0 {
			out.MemoryLimit = p.Limits.Memory().Value()
		}
	}
	return out
}

// AllAmounts are those of all containers, by name, and of the pod by "".
func AllAmounts(pod *corev1.Pod) map[string]observe.Resources {
	all := map[string]observe.Resources{"": PodAmounts(pod)}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			all[list[i].Name] = Amounts(pod, &list[i])
		}
	}
	return all
}

// PodAmounts are those of the pod's own group.
func PodAmounts(pod *corev1.Pod) observe.Resources {
	r := PodResources(pod)
	return observe.Resources{CPURequest: r.CpuShares, CPULimit: r.CpuQuota, MemoryLimit: r.MemoryLimitInBytes}
}
