package request

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// TestLimitsOfTheNode looks at what a configuration makes of one pod's limits.
func TestLimitsOfTheNode(t *testing.T) {
	pod := func(memory, limit string) *corev1.Pod {
		return &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{"cpu": resource.MustParse("1"), "memory": resource.MustParse(memory)},
			Limits:   corev1.ResourceList{"cpu": resource.MustParse("1"), "memory": resource.MustParse(limit)},
		}}}}}
	}
	for _, c := range []struct {
		what string
		node Node
		pod  *corev1.Pod
		want string // quota, period, memory and swap, more
	}{
		{"nothing", Node{}, pod("1Gi", "2Gi"), "100000/100000 2147483648 0 map[]"},
		{"no quota", Node{CPU: CPU{NoQuota: true}}, pod("1Gi", "2Gi"), "0/100000 2147483648 0 map[]"},
		{"a short period", Node{CPU: CPU{Period: 5 * time.Millisecond}}, pod("1Gi", "2Gi"), "5000/5000 2147483648 0 map[]"},
		{"no swap on v1", Node{Memory: Memory{Swap: NoSwap}}, pod("1Gi", "2Gi"), "100000/100000 2147483648 2147483648 map[]"},
		{"as a whole", Node{Memory: Memory{V2: true}}, pod("1Gi", "2Gi"), "100000/100000 2147483648 0 map[memory.oom.group:1]"},
		{"no swap", Node{Memory: Memory{V2: true, OneByOne: true, Swap: NoSwap}}, pod("1Gi", "2Gi"), "100000/100000 2147483648 0 map[memory.swap.max:0]"},
		{"a share of swap", Node{MemoryBytes: 4 << 30, Memory: Memory{V2: true, OneByOne: true, Swap: LimitedSwap, SwapBytes: 1 << 20}}, pod("1Gi", "2Gi"),
			"100000/100000 2147483648 0 map[memory.swap.max:262144]"},
		{"none for guaranteed pods", Node{MemoryBytes: 4 << 30, Memory: Memory{V2: true, OneByOne: true, Swap: LimitedSwap, SwapBytes: 1 << 20}}, pod("1Gi", "1Gi"),
			"100000/100000 1073741824 0 map[memory.swap.max:0]"},
		{"slowed down half-way", Node{Memory: Memory{V2: true, OneByOne: true, Throttle: 0.5}}, pod("1Gi", "2Gi"), "100000/100000 2147483648 0 map[memory.high:1610612736]"},
		{"half-way to what there is", Node{Memory: Memory{V2: true, OneByOne: true, Throttle: 0.5, Allocatable: 5 << 30}}, pod("1Gi", "0"), "100000/100000 0 0 map[memory.high:3221225472]"},
		{"at a whole page", Node{Memory: Memory{V2: true, OneByOne: true, Throttle: 0.5}}, pod("1", "8193"), "100000/100000 8193 0 map[memory.high:4096]"},
		{"guaranteed pods are not", Node{Memory: Memory{V2: true, OneByOne: true, Throttle: 0.5}}, pod("1Gi", "1Gi"), "100000/100000 1073741824 0 map[memory.high:max]"},
		{"reserved", Node{Memory: Memory{V2: true, OneByOne: true, Reserve: true}}, pod("1Gi", "1Gi"), "100000/100000 1073741824 0 map[memory.low:0 memory.min:1073741824]"},
		{"left, if possible", Node{Memory: Memory{V2: true, OneByOne: true, Reserve: true}}, pod("1Gi", "2Gi"), "100000/100000 2147483648 0 map[memory.low:1073741824 memory.min:0]"},
		{"not on v1", Node{Memory: Memory{Reserve: true, Throttle: 0.5}}, pod("1Gi", "2Gi"), "100000/100000 2147483648 0 map[]"},
	} {
		r := c.node.Resources(c.pod, &c.pod.Spec.Containers[0])
		if got := fmt.Sprintf("%d/%d %d %d %v", r.CpuQuota, r.CpuPeriod, r.MemoryLimitInBytes, r.MemorySwapLimitInBytes, r.Unified); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
		if p := c.node.PodResources(c.pod); p.CpuQuota != r.CpuQuota || p.CpuPeriod != r.CpuPeriod {
			t.Errorf("%s: the pod has %d/%d", c.what, p.CpuQuota, p.CpuPeriod)
		}
	}
}
