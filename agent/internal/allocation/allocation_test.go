package allocation

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func list(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
}

func TestPodsGetWhatIsFree(t *testing.T) {
	all := list("2", "1Gi")
	all[corev1.ResourcePods] = resource.MustParse("3")
	l := &Ledger{Allocatable: all}
	told := map[string]int{}
	take := func(uid string, priority int32, cpu, memory string) *Shortage {
		return l.Take(Request{UID: uid, Priority: priority, Requests: list(cpu, memory), Free: func() { told[uid]++ }})
	}
	if s := take("big", 0, "3", "0"); s == nil || !s.Never() || s.Reason() != "OutOfcpu" ||
		s.Error() != "Node didn't have enough resource: cpu, requested: 3000, used: 0, capacity: 2000" {
		t.Errorf("three of two processors: %v", s)
	}
	l.Release("big")
	if s := take("a", 0, "1500m", "512Mi"); s != nil {
		t.Error(s)
	}
	if s := take("low", 0, "1", "0"); s == nil || s.Never() || s.Used != 1500 {
		t.Errorf("low: %v", s)
	}
	if s := take("high", 10, "1", "0"); s == nil {
		t.Error("high fits into what is not there")
	}
	if s := take("b", 0, "500m", "1Gi"); s == nil || s.Reason() != "OutOfmemory" {
		t.Errorf("b: %v", s)
	}
	if s := take("b", 0, "100m", "1Mi"); s != nil {
		t.Errorf("b, smaller: %v", s)
	}
	// a shrinks: enough for one of those that wait, and that is high.
	if s := take("a", 0, "500m", "512Mi"); s != nil {
		t.Errorf("a shrinks: %v", s)
	}
	if told["high"] == 0 || told["low"] != 0 {
		t.Errorf("told: %v", told)
	}
	if s := take("low", 0, "1", "0"); s == nil {
		t.Error("low comes before high")
	}
	if s := take("high", 10, "1", "0"); s != nil {
		t.Errorf("high: %v", s)
	}
	if s := take("fourth", 0, "0", "0"); s == nil || s.Reason() != "OutOfpods" {
		t.Errorf("a fourth of three pods: %v", s)
	}
	l.Release("a")
	if told["low"] != 0 || told["fourth"] == 0 {
		t.Errorf("told: %v", told)
	}
}

func TestHugePagesAreBounded(t *testing.T) {
	l := &Ledger{Allocatable: corev1.ResourceList{"hugepages-2Mi": resource.MustParse("4Mi")}}
	take := func(uid string, name corev1.ResourceName, n string) *Shortage {
		return l.Take(Request{UID: uid, Requests: corev1.ResourceList{name: resource.MustParse(n)}, Free: func() {}})
	}
	if s := take("a", "hugepages-2Mi", "2Mi"); s != nil {
		t.Error(s)
	}
	if s := take("b", "hugepages-2Mi", "4Mi"); s == nil || s.Never() || s.Reason() != "OutOfhugepages-2Mi" {
		t.Errorf("b: %v", s)
	}
	if s := take("c", "hugepages-1Gi", "1Gi"); s == nil || !s.Never() {
		t.Errorf("of a size that the machine has not: %v", s)
	}
}
