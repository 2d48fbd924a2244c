package kubeletconfig

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"podstead/agent"
	"podstead/agent/internal/numa"
)

func TestPinning(t *testing.T) {
	p, err := policyOf(t, `
cpuManagerPolicy: static
cpuManagerPolicyOptions: {full-pcpus-only: "true", strict-cpu-reservation: "false", align-by-socket: "1"}
cpuManagerReconcilePeriod: 3s
reservedSystemCPUs: "0,2-3"
`)
	want := agent.Pinning{Static: true, Options: numa.Options{FullCores: true, AlignBySocket: true}, Reserved: numa.CPUs{0, 2, 3}, Period: 3 * time.Second}
	if err != nil || !reflect.DeepEqual(p.Pinning, want) || p.Node.Kube.Cpu().Value() != 3 {
		t.Errorf("%+v, %v", p.Pinning, err)
	}
	if p, err := policyOf(t, "cpuManagerPolicy: none"); err != nil || !reflect.DeepEqual(p.Pinning, agent.DefaultPolicy().Pinning) {
		t.Errorf("%+v, %v", p.Pinning, err)
	}
	for text, want := range map[string]string{
		"cpuManagerPolicy: Static":                                                                                "cpuManagerPolicy: ",
		"cpuManagerReconcilePeriod: -1s":                                                                          "cpuManagerReconcilePeriod: ",
		"cpuManagerPolicyOptions: {full-pcpus-only: 'true'}":                                                      "cpuManagerPolicyOptions: ",
		"cpuManagerPolicy: static\ncpuManagerPolicyOptions: {fast: 'true'}":                                       "cpuManagerPolicyOptions[fast]: ",
		"cpuManagerPolicy: static\ncpuManagerPolicyOptions: {full-pcpus-only: x}":                                 "cpuManagerPolicyOptions[full-pcpus-only]: ",
		"cpuManagerPolicy: static\ntopologyManagerPolicy: single-numa-node\n" + options("align-by-socket"):        "cpuManagerPolicyOptions: align-by-socket",
		"cpuManagerPolicy: static\n" + options("full-pcpus-only", "distribute-cpus-across-cores"):                 "cpuManagerPolicyOptions: full-pcpus-only and",
		"cpuManagerPolicy: static\n" + options("distribute-cpus-across-numa", "distribute-cpus-across-cores"):     "cpuManagerPolicyOptions: distribute-cpus-across-numa and",
		"cpuManagerPolicy: static\n" + options("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-numa"): "cpuManagerPolicyOptions: prefer-align",
		"reservedSystemCPUs: '0-'":                                                                                "reservedSystemCPUs: ",
	} {
		if _, err := policyOf(t, text); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func options(names ...string) string {
	return "cpuManagerPolicyOptions: {" + strings.Join(names, ": 'true', ") + ": 'true'}"
}

func TestTopologyAndMemory(t *testing.T) {
	p, err := policyOf(t, `
topologyManagerPolicy: restricted
topologyManagerScope: pod
topologyManagerPolicyOptions: {prefer-closest-numa-nodes: "true", max-allowable-numa-nodes: "12"}
memoryManagerPolicy: Static
reservedMemory: [{numaNode: 0, limits: {memory: 1Gi}}, {numaNode: 1, limits: {memory: 100Mi, hugepages-2Mi: 4Mi}}]
`)
	want := agent.DefaultPolicy().Pinning
	want.Topology, want.PodScope, want.MaxNodes = numa.Topology{Policy: numa.Restricted, Closest: true}, true, 12
	want.StaticMemory = true
	want.ReservedMemory = map[int]map[string]uint64{0: {"memory": 1 << 30}, 1: {"memory": 100 << 20, "hugepages-2Mi": 4 << 20}}
	if err != nil || !reflect.DeepEqual(p.Pinning, want) {
		t.Errorf("%+v, %v", p.Pinning, err)
	}
	const static = "memoryManagerPolicy: Static\nreservedMemory: "
	for text, want := range map[string]string{
		"topologyManagerPolicy: some":                                      "topologyManagerPolicy: ",
		"topologyManagerScope: node":                                       "topologyManagerScope: ",
		"topologyManagerPolicyOptions: {fast: 'true'}":                     "topologyManagerPolicyOptions[fast]: there is no",
		"topologyManagerPolicyOptions: {max-allowable-numa-nodes: '7'}":    "topologyManagerPolicyOptions[max-allowable-numa-nodes]: ",
		"topologyManagerPolicyOptions: {prefer-closest-numa-nodes: maybe}": "topologyManagerPolicyOptions[prefer-closest-numa-nodes]: ",
		"memoryManagerPolicy: static":                                      "memoryManagerPolicy: ",
		"reservedMemory: [{numaNode: 0, limits: {memory: 1Gi}}]":           "reservedMemory: it is of",
		static + "[{numaNode: 0, limits: {cpu: 1}}]":                       "reservedMemory[0].limits[cpu]: ",
		static + "[{numaNode: 0, limits: {memory: 0}}]":                    "reservedMemory[0].limits[memory]: ",
		static + "[{numaNode: 0}, {numaNode: 0}]":                          "reservedMemory[1].numaNode: ",
	} {
		if _, err := policyOf(t, text); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
