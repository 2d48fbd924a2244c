package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"podstead/agent/internal/numa"
	"podstead/cri"
)

// onMachine lets an agent believe in another machine than this one: one node of four
// cores with a thread each, of which processor 0 is reserved.
func (b *bench) onMachine(static bool) {
	b.Helper()
	b.stop()
	policy := DefaultPolicy()
	b.policy = &policy
	b.policy.Pinning = Pinning{Static: static, Reserved: numa.CPUs{0}, Period: 10 * time.Second}
	b.policy.Node.Kube = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}
	b.allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10")} // room is not what is short
	b.machine = &numa.Machine{Nodes: []numa.Node{{Memory: map[string]uint64{"memory": 8 << 30}, Distances: []int{10}}}}
	for i := range 4 {
		b.machine.CPUs = append(b.machine.CPUs, numa.CPU{ID: i, Core: i})
	}
	b.boot()
}

func pinnedPod(name, cpu string) string {
	return fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: %s, image: "app:1",
  resources: {limits: {cpu: %s, memory: 64Mi}}}]}}`, name, name, cpu)
}

// cpus checks what containers were told to run on, and their quota.
func (b *bench) cpus(what string, want map[string]string) {
	b.Helper()
	synctest.Wait()
	for name, cpus := range want {
		r := b.resources(name)
		if got := fmt.Sprint(r.CpusetCpus, " ", r.CpuQuota); got != cpus {
			b.Errorf("%s: %s has %s, want %s", what, name, got, cpus)
		}
	}
}

// Whole processors of a Guaranteed pod are its own, the others share the rest; who
// finds none waits; nothing changes over a restart of the agent.
func TestProcessorsOfTheirOwn(t *testing.T) {
	simulate(t, func(b *bench) {
		b.onMachine(true)
		b.apply(sized("shares", "100m", "64Mi", ""))
		b.cpus("alone", map[string]string{"app": "0-3 0"})
		b.apply(pinnedPod("two", "2"))
		b.apply(pinnedPod("half", "500m"))
		b.cpus("beside two", map[string]string{"app": "0,3 0", "two": "1-2 0", "half": "0,3 50000"})

		b.apply(pinnedPod("more", "2"))
		b.after(time.Minute)
		p := b.pod("more")
		if p.Status.Reason != "UnexpectedAdmissionError" || p.Status.Message != "Allocate failed due to not enough cpus available to satisfy request: requested=2, available=1, which is unexpected" {
			t.Errorf("without room: %s: %s", p.Status.Reason, p.Status.Message)
		}
		calls := len(b.rt.made("UpdateContainerResources", "two"))
		b.stop()
		b.boot()
		b.after(time.Minute)
		b.cpus("after a restart", map[string]string{"app": "0,3 0", "two": "1-2 0", "half": "0,3 50000"})
		if n := len(b.rt.made("UpdateContainerResources", "two")) - calls; n != 1 {
			t.Errorf("%d updates in the minute after a restart", n)
		}

		b.apply(strings.Replace(pinnedPod("two", "2"), "cpu: 2", "cpu: 1", 1))
		if c := b.condition("two", corev1.PodResizePending); c.Reason != corev1.PodReasonInfeasible || c.Message != "Resize is infeasible for Guaranteed Pods alongside CPU Manager static policy" {
			t.Errorf("a resize: %+v", c)
		}
		b.apply(strings.Replace(pinnedPod("two", "2"), "64Mi", "128Mi", 1))
		b.after(time.Minute)
		if r := b.resources("two"); r.MemoryLimitInBytes != 128<<20 || r.CpusetCpus != "1-2" || r.CpuQuota != 0 {
			t.Errorf("another limit of memory: %+v", r)
		}

		b.delete("two", nil)
		b.after(time.Minute)
		b.cpus("in its place", map[string]string{"app": "0,3 0", "more": "1-2 0"})
		// The runtime refuses for a while.
		b.rt.script(func() {
			b.rt.fail = func(verb, name string) error {
				if verb == "UpdateContainerResources" {
					return cri.Errorf(codes.Internal, "not now")
				}
				return nil
			}
		})
		b.delete("more", nil)
		b.after(5 * time.Second)
		b.rt.script(func() { b.rt.fail = nil })
		b.after(time.Minute)
		b.cpus("whole again", map[string]string{"app": "0-3 0", "half": "0-3 50000"})

		b.apply(pinnedPod("two", "2"))
		b.onMachine(false)
		b.after(time.Minute)
		b.cpus("without the policy", map[string]string{"app": "0-3 0", "two": "0-3 0"})
		if left, _ := filepath.Glob(filepath.Join(b.dir, "state", "cpus.json")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// What the record says of processors and does not fit any more is not heeded.
func TestProcessorsThatAreGone(t *testing.T) {
	simulate(t, func(b *bench) {
		b.onMachine(true)
		b.apply(pinnedPod("two", "2"))
		b.stop()
		b.machine.CPUs = b.machine.CPUs[:2]
		b.boot()
		b.after(time.Minute)
		b.cpus("on less processors", map[string]string{"two": "0-1 0"})
		b.stop()
		if err := os.WriteFile(filepath.Join(b.dir, "state", "cpus.json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		b.boot()
		b.after(time.Minute)
		b.cpus("with a broken record", map[string]string{"two": "0-1 0"})
	})
}

// Memory and processors of a container are on one node; who finds none waits, with the
// kubelet's reason.
func TestNodesOfTheirOwn(t *testing.T) {
	simulate(t, func(b *bench) {
		b.onMachine(true)
		b.stop()
		b.machine.Nodes = append(b.machine.Nodes, numa.Node{ID: 1, Memory: map[string]uint64{"memory": 8 << 30}, Distances: []int{20, 10}})
		b.machine.Nodes[0].Distances = []int{10, 20}
		b.machine.CPUs[2].Node, b.machine.CPUs[3].Node = 1, 1
		b.policy.Pinning.Topology.Policy = numa.SingleNode
		b.policy.Pinning.StaticMemory = true
		b.policy.Pinning.ReservedMemory = map[int]map[string]uint64{0: {"memory": 100 << 20}} // as eviction keeps
		b.boot()
		b.apply(pinnedPod("two", "2"))
		if r := b.resources("two"); r.CpusetCpus != "2-3" || r.CpusetMems != "1" {
			t.Errorf("processors %q, memory %q", r.CpusetCpus, r.CpusetMems)
		}
		b.apply(pinnedPod("more", "2"))
		if p := b.pod("more"); p.Status.Reason != "TopologyAffinityError" || p.Status.Message != "Resources cannot be allocated with Topology locality" {
			t.Errorf("without room: %s: %s", p.Status.Reason, p.Status.Message)
		}
		_, why, _ := backend{b.agent}.Pod("default", "more")
		if len(why.Waiting) != 1 || why.Waiting[0].Reason != "TopologyAffinityError" || why.Stage != "waiting for the node" || why.Next == "" {
			t.Errorf("why: %+v", why)
		}
		b.apply(strings.Replace(pinnedPod("two", "2"), "64Mi", "128Mi", 1))
		if c := b.condition("two", corev1.PodResizePending); c.Reason != corev1.PodReasonInfeasible || c.Message != "Resize is infeasible for Guaranteed Pods alongside Memory Manager static policy" {
			t.Errorf("a resize: %+v", c)
		}
		b.apply(pinnedPod("two", "2"))
		b.stop()
		b.boot()
		b.after(time.Minute)
		if r := b.resources("two"); r.CpusetCpus != "2-3" || r.CpusetMems != "1" {
			t.Errorf("after a restart: processors %q, memory %q", r.CpusetCpus, r.CpusetMems)
		}
		b.delete("two", nil)
		b.after(time.Minute)
		if r := b.resources("more"); r.CpusetCpus != "2-3" || r.CpusetMems != "1" {
			t.Errorf("in its place: processors %q, memory %q", r.CpusetCpus, r.CpusetMems)
		}
	})
}
