package agent

import (
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func sized(name, cpu, memory, extra string) string {
	return `{apiVersion: v1, kind: Pod, metadata: {name: ` + name + `}, spec: {containers: [{name: app, image: "app:1",
  resources: {requests: {cpu: ` + cpu + `, memory: ` + memory + `}, limits: {memory: ` + memory + `}}` + extra + `}]}}`
}

func (b *bench) condition(pod string, kind corev1.PodConditionType) corev1.PodCondition {
	b.Helper()
	for _, c := range b.pod(pod).Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.PodCondition{}
}

// resources are what the runtime gave the only container of that name.
func (b *bench) resources(name string) *runtimeapi.LinuxContainerResources {
	b.Helper()
	ids := b.rt.running(name)
	if len(ids) != 1 {
		b.Fatalf("%d of %s run", len(ids), name)
	}
	b.rt.mu.Lock()
	defer b.rt.mu.Unlock()
	return b.rt.containers[ids[0]].config.Linux.Resources
}

func TestResourcesChangeInPlace(t *testing.T) {
	simulate(t, func(b *bench) {
		b.apply(sized("web", "100m", "64Mi", ""))
		id := b.container("web", 0).ContainerID
		b.apply(sized("web", "200m", "128Mi", ""))
		c := b.container("web", 0)
		if r := b.resources("app"); c.ContainerID != id || r.CpuShares != 204 || r.MemoryLimitInBytes != 128<<20 {
			t.Errorf("%s has %v", c.ContainerID, r)
		}
		if c.Resources.Limits.Memory().String() != "128Mi" || c.AllocatedResources.Cpu().String() != "200m" || b.condition("web", corev1.PodResizeInProgress).Type != "" {
			t.Errorf("status: %+v", c)
		}
		// Not below what is used, and tried again.
		used := uint64(100 << 20)
		b.rt.script(func() {
			b.rt.stats = func(c *fakeContainer) *runtimeapi.ContainerStats {
				return &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{Id: c.id, Metadata: c.config.Metadata, Labels: c.config.Labels},
					Memory: &runtimeapi.MemoryUsage{UsageBytes: &runtimeapi.UInt64Value{Value: used}}}
			}
		})
		b.apply(sized("web", "200m", "64Mi", ""))
		if c := b.condition("web", corev1.PodResizeInProgress); c.Reason != corev1.PodReasonError ||
			!strings.Contains(c.Message, `attempting to set container "app" memory limit (67108864) below current usage (104857600)`) {
			t.Errorf("condition: %+v", c)
		}
		if c := b.container("web", 0); c.Resources.Limits.Memory().String() != "128Mi" || c.AllocatedResources.Memory().String() != "64Mi" {
			t.Errorf("status: %+v", c)
		}
		b.stop()
		b.boot() // another agent goes on with it
		b.after(time.Second)
		if b.resources("app").MemoryLimitInBytes != 128<<20 {
			t.Error("the limit is below what is used")
		}
		b.rt.script(func() { used = 10 << 20 })
		b.after(time.Minute)
		if c := b.container("web", 0); b.resources("app").MemoryLimitInBytes != 64<<20 || c.Resources.Limits.Memory().String() != "64Mi" || c.RestartCount != 0 {
			t.Errorf("status: %+v", c)
		}
	})
}

func TestResizePolicyRestarts(t *testing.T) {
	simulate(t, func(b *bench) {
		policy := `, resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]`
		b.apply(sized("web", "100m", "64Mi", policy))
		b.apply(sized("web", "200m", "64Mi", policy))
		if n := b.container("web", 0).RestartCount; n != 0 || b.resources("app").CpuShares != 204 {
			t.Errorf("cpu: %d restarts", n)
		}
		b.apply(sized("web", "200m", "128Mi", policy))
		b.after(time.Second)
		if n := b.container("web", 0).RestartCount; n != 1 || b.resources("app").MemoryLimitInBytes != 128<<20 {
			t.Errorf("memory: %d restarts", n)
		}
	})
}

func TestPodsWaitForWhatOthersHave(t *testing.T) {
	simulate(t, func(b *bench) {
		b.stop()
		b.allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("1Gi")}
		b.boot()
		b.apply(sized("one", "1", "64Mi", ""))
		b.apply(sized("two", "1500m", "64Mi", ""))
		p := b.pod("two")
		if p.Status.Phase != corev1.PodPending || p.Status.Reason != "OutOfcpu" ||
			p.Status.Message != "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000" {
			t.Errorf("status: %+v", p.Status)
		}
		// Growing into what is not there is deferred, or infeasible.
		b.apply(sized("three", "900m", "64Mi", ""))
		b.apply(sized("one", "1200m", "64Mi", ""))
		if c := b.condition("one", corev1.PodResizePending); c.Reason != corev1.PodReasonDeferred || !b.ready("one") || cpuOf(b.container("one", 0)) != "1" {
			t.Errorf("condition: %+v", c)
		}
		b.apply(sized("one", "3", "64Mi", ""))
		if c := b.condition("one", corev1.PodResizePending); c.Reason != corev1.PodReasonInfeasible {
			t.Errorf("condition: %+v", c)
		}
		b.apply(sized("one", "1100m", "64Mi", ""))
		b.stop()
		b.boot()
		b.delete("three", nil)
		b.after(time.Second)
		if c := b.condition("one", corev1.PodResizePending); c.Type != "" || b.resources("app").CpuShares != 1126 {
			t.Errorf("condition: %+v", c)
		}
		b.delete("one", nil)
		b.after(time.Second)
		if !b.ready("two") {
			t.Errorf("two is not ready when there is room: %+v", b.pod("two").Status)
		}
	})
}

func TestFailedUpdateIsTriedAgain(t *testing.T) {
	simulate(t, func(b *bench) {
		b.apply(sized("web", "100m", "64Mi", ""))
		b.rt.script(func() {
			b.rt.fail = func(verb, _ string) error {
				if verb == "UpdateContainerResources" {
					return errors.New("no")
				}
				return nil
			}
		})
		b.apply(sized("web", "200m", "64Mi", ""))
		if c := b.condition("web", corev1.PodResizeInProgress); c.Reason != corev1.PodReasonError || !strings.HasSuffix(c.Message, ": no") {
			t.Errorf("condition: %+v", c)
		}
		b.rt.script(func() { b.rt.fail = nil })
		b.after(5 * time.Second)
		if b.resources("app").CpuShares != 204 || b.condition("web", corev1.PodResizeInProgress).Type != "" {
			t.Error("it was not tried again")
		}
	})
}

// TestAddedContainersWait adds a container to a running pod for which there is no
// room, and then makes room.
func TestAddedContainersWait(t *testing.T) {
	simulate(t, func(b *bench) {
		b.stop()
		b.allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")}
		b.boot()
		container := func(name, cpu string) string {
			return "{name: " + name + `, image: "app:1", resources: {requests: {cpu: ` + cpu + "}}}"
		}
		pod := func(name, containers string) string {
			return `{apiVersion: v1, kind: Pod, metadata: {name: ` + name + `}, spec: {containers: [` + containers + `]}}`
		}
		b.apply(pod("web", container("one", "500m")))
		b.apply(pod("other", container("other", "1")))
		b.after(time.Second)
		b.apply(pod("web", container("one", "500m")+", "+container("two", "800m")))
		check := func(when string) {
			t.Helper()
			one, two := b.container("web", 0), b.container("web", 1)
			if one.State.Running == nil || one.RestartCount != 0 {
				t.Errorf("%s: what ran is %+v", when, one.State)
			}
			if w := two.State.Waiting; w == nil || w.Reason != "OutOfcpu" || !strings.Contains(w.Message, "requested: 1300, used: 1000") {
				t.Errorf("%s: what was added is %+v", when, two.State)
			}
			if c := b.condition("web", corev1.PodResizePending); c.Type != "" {
				t.Errorf("%s: %+v", when, c)
			}
		}
		b.after(time.Minute)
		check("no room")
		b.stop()
		b.boot()
		b.after(time.Minute)
		check("a new agent")
		b.delete("other", nil)
		b.after(time.Minute)
		if one := b.container("web", 0); !b.ready("web") || one.RestartCount != 0 || len(b.rt.running("two")) != 1 {
			t.Errorf("there is room: %+v", b.pod("web").Status)
		}
	})
}

// After a reboot pods begin in the order of their priority.
func TestPriorityAfterReboot(t *testing.T) {
	simulate(t, func(b *bench) {
		pod := func(name, priority string) string {
			return `{apiVersion: v1, kind: Pod, metadata: {name: ` + name + `}, spec: {` + priority + ` containers: [{name: ` + name + `, image: "app:1"}]}}`
		}
		b.apply(pod("low", ""))
		b.apply(pod("critical", "priorityClassName: system-node-critical, "))
		b.apply(pod("mid", "priority: 100, "))
		b.after(time.Minute)
		b.stop()
		b.reboot()
		before := time.Now()
		b.rt.script(func() {
			b.rt.slow = func(verb, _ string) time.Duration {
				if verb == "StartContainer" {
					return time.Second
				}
				return 0
			}
		})
		b.boot()
		b.after(10 * time.Second)
		began := func(name string) (seconds int) {
			for _, at := range b.rt.made("StartContainer", name) {
				if !at.Before(before) {
					return int(at.Sub(before) / time.Second)
				}
			}
			return -1
		}
		if c, m, l := began("critical"), began("mid"), began("low"); c < 0 || m <= c || l <= m {
			t.Errorf("critical began after %d s, mid %d, low %d", c, m, l)
		}
	})
}

func cpuOf(c corev1.ContainerStatus) string { return c.AllocatedResources.Cpu().String() }

// TestTakenOutContainersLeaveRoom: what a container requested that is not in the pod
// any more is for others at once.
func TestTakenOutContainersLeaveRoom(t *testing.T) {
	simulate(t, func(b *bench) {
		b.stop()
		b.allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}
		b.boot()
		pod := func(name string, containers string) string {
			return `{apiVersion: v1, kind: Pod, metadata: {name: ` + name + `}, spec: {terminationGracePeriodSeconds: 1, containers: [` + containers + `]}}`
		}
		const a, big = `{name: a, image: "app:1"}`, `{name: b, image: "app:1", resources: {requests: {cpu: 800m}}}`
		b.apply(pod("first", a+", "+big))
		b.after(time.Minute)
		b.apply(pod("second", big))
		b.after(time.Minute)
		if b.ready("second") {
			t.Fatal("there is room for both")
		}
		b.apply(pod("first", a))
		b.after(time.Minute)
		if !b.ready("second") {
			t.Errorf("%+v", b.pod("second").Status)
		}
	})
}
