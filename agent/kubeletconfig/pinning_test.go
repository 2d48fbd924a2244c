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
