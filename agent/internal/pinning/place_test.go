package pinning

import (
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"podstead/agent/internal/numa"
	"podstead/agent/internal/request"
)

const gib = 1 << 30

// withMemory gives the containers of a pod so many GiB each.
func withMemory(p *corev1.Pod, gibs ...int64) *corev1.Pod {
	list, _ := request.InTurn(p)
	for i, c := range list {
		q := *resource.NewQuantity(gibs[i]*gib, resource.BinarySI)
		c.Resources.Requests[corev1.ResourceMemory], c.Resources.Limits[corev1.ResourceMemory] = q, q
	}
	return p
}

// on has devices that a container needs on one node, by the container's name.
func on(nodes map[string]numa.Mask) func(numa.Machine, string) [][]numa.Hint {
	return func(_ numa.Machine, container string) (out [][]numa.Hint) {
		if at := nodes[container]; at != 0 {
			out = append(out, []numa.Hint{{Nodes: at, Preferred: true}})
		}
		return out
	}
}

func TestTopology(t *testing.T) {
	for _, c := range []struct {
		what    string
		policy  Policy
		pod     *corev1.Pod
		devices map[string]numa.Mask
		want    string
	}{
		{"processors go where devices are", Policy{Topology: numa.Topology{Policy: numa.Restricted}}, pod("p", "a=2"), map[string]numa.Mask{"a": 2}, "p/a=2,6@1 shared=0-1,3-5,7"},
		{"each container for itself", Policy{Topology: numa.Topology{Policy: numa.SingleNode}}, pod("p", "a=1", "b=1"), map[string]numa.Mask{"a": 2, "b": 1}, "p/a=2@1 p/b=1@0 shared=0,3-7"},
		{"or all together", Policy{PodScope: true, Topology: numa.Topology{Policy: numa.SingleNode}}, pod("p", "a=1", "b=2"), nil, "p/a=2@1 p/b=3,7@1 shared=0-1,4-6"},
		{"the pod is too large for a node", Policy{PodScope: true, Topology: numa.Topology{Policy: numa.SingleNode}}, pod("p", "a=3", "b=2"), nil, "TopologyAffinityError: Resources cannot be allocated with Topology locality"},
		{"its containers are not", Policy{Topology: numa.Topology{Policy: numa.SingleNode}}, pod("p", "a=3", "b=2"), nil, "p/a=2-3,6@1 p/b=1,5@0 shared=0,4,7"},
		{"two nodes are as few as can be", Policy{Topology: numa.Topology{Policy: numa.Restricted}}, pod("p", "a=5"), nil, "p/a=1-3,6-7 shared=0,4-5"},
		{"devices elsewhere", Policy{Topology: numa.Topology{Policy: numa.Restricted}}, pod("p", "a=3"), map[string]numa.Mask{"a": 1}, "TopologyAffinityError: Resources cannot be allocated with Topology locality"},
		{"as well as can be", Policy{Topology: numa.Topology{Policy: numa.BestEffort}}, pod("p", "a=3"), map[string]numa.Mask{"a": 1}, "p/a=1-2,5@0 shared=0,3-4,6-7"},
		{"a pod that shares, near its devices", Policy{Topology: numa.Topology{Policy: numa.SingleNode}}, pod("p", "a=500m"), map[string]numa.Mask{"a": 2}, "p/a=@1 shared=0-7"},
		{"without a policy", Policy{}, pod("p", "a=3"), map[string]numa.Mask{"a": 1}, "p/a=2-3,6 shared=0-1,4-5,7"},
	} {
		c.policy.Static, c.policy.Reserved = true, numa.CPUs{0, 4}
		b, _ := open(t, filepath.Join(t.TempDir(), "cpus.json"), eight(), c.policy)
		no := b.Admit(Ask{Pod: c.pod, Devices: on(c.devices)})
		got := b.text()
		if no != nil {
			got = no.Reason + ": " + no.Message
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
		if no == nil {
			if again := b.Admit(Ask{Pod: c.pod, Devices: on(map[string]numa.Mask{"a": 3})}); again != nil || b.text() != got {
				t.Errorf("%s, again: %v, %s", c.what, again, b.text())
			}
		}
	}
}

func TestMemory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cpus.json")
	policy := Policy{StaticMemory: true, ReservedMemory: map[int]map[string]uint64{0: {"memory": gib}}}
	b, _ := open(t, file, eight(), policy)
	admit := func(p *corev1.Pod, want string) {
		t.Helper()
		no := b.Admit(Ask{Pod: p})
		got := b.text()
		if no != nil {
			got = no.Reason + ": " + no.Message
		}
		if got != want {
			t.Errorf("%s: %s, want %s", p.Name, got, want)
		}
	}
	const none = "UnexpectedAdmissionError: Allocate failed due to [memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available, which is unexpected"
	// What its init container has is used again.
	admit(withMemory(pod("one", "init:i=500m", "a=500m"), 2, 1), "one/a=+0 one/i=+0 shared=0-7")
	admit(withMemory(pod("two", "a=500m"), 2), "one/a=+0 one/i=+0 two/a=+1 shared=0-7")
	admit(withMemory(pod("both", "a=500m"), 4), none)
	admit(withMemory(pod("small", "a=500m"), 2), "one/a=+0 one/i=+0 small/a=+1 two/a=+1 shared=0-7")
	admit(withMemory(pod("last", "a=500m"), 2), none)
	again, log := open(t, file, eight(), policy)
	if again.text() != b.text() || log != "" || again.Of("two", "a").Memory["memory"] != 2*gib {
		t.Errorf("%s, %s", again.text(), log)
	}
	for _, uid := range []string{"one", "two", "small"} {
		b.Release(uid)
	}
	admit(withMemory(pod("both", "a=500m"), 5), "both/a=+0-1 shared=0-7")
	if off, log := open(t, file, eight(), Policy{Static: true, Reserved: numa.CPUs{0}}); off.text() != "shared=0-7" || !strings.Contains(log, "memoryManagerPolicy is not Static any more") {
		t.Errorf("without the policy: %s, %s", off.text(), log)
	}
	if got := b.Memory(); got[0]["memory"] != 3*gib || got[1]["memory"] != 4*gib {
		t.Error(got)
	}
	for want, reserved := range map[string]map[int]map[string]uint64{
		"reservedMemory: the machine has no NUMA node 7": {7: {"memory": 1}}, "reservedMemory: node 1 has": {1: {"memory": 5 * gib}},
	} {
		if _, err := Open(file, eight(), Policy{StaticMemory: true, ReservedMemory: reserved}, Events{}, nil); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v: %v", reserved, err)
		}
	}
}

// TestMemoryNearProcessors: what a container has of both is on the same node.
func TestMemoryNearProcessors(t *testing.T) {
	b, _ := open(t, filepath.Join(t.TempDir(), "cpus.json"), eight(), Policy{Static: true, Reserved: numa.CPUs{0, 4}, StaticMemory: true,
		ReservedMemory: map[int]map[string]uint64{1: {"memory": 3 * gib}}, Topology: numa.Topology{Policy: numa.SingleNode}})
	if no := b.Admit(Ask{Pod: withMemory(pod("p", "a=2"), 2)}); no != nil || b.text() != "p/a=1,5@0+0 shared=0,2-4,6-7" {
		t.Errorf("%+v, %s", no, b.text())
	}
	if no := b.Admit(Ask{Pod: withMemory(pod("q", "a=2"), 2)}); no == nil || no.Reason != "TopologyAffinityError" {
		t.Errorf("%+v, %s", no, b.text())
	}
	if no := b.Admit(Ask{Pod: withMemory(pod("r", "a=2"), 1)}); no != nil || b.Of("r", "a").CPUs.String() != "2,6" {
		t.Errorf("%+v, %s", no, b.text())
	}
	if nodes, strict := b.Near("r", "a"); !strict || len(nodes) != 1 || nodes[0] != 1 {
		t.Error(nodes, strict)
	}
}
