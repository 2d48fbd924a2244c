package kubeletconfig

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	kubelet "k8s.io/kubelet/config/v1beta1"

	"podstead/agent"
)

func policyOf(t *testing.T, text string) (agent.Policy, error) {
	t.Helper()
	c := &kubelet.KubeletConfiguration{}
	if err := yaml.UnmarshalStrict([]byte(text), c); err != nil {
		t.Fatal(err)
	}
	return Policy(c)
}

func TestReservations(t *testing.T) {
	p, err := policyOf(t, `
maxPods: 20
podsPerCore: 5
systemReserved: {cpu: 500m, memory: 1Gi, pid: "1000"}
kubeReserved: {memory: 512Mi}
reservedSystemCPUs: "0,2-3"
systemReservedCgroup: /system
enforceNodeAllocatable: [pods, system-reserved-compressible]
`)
	if err != nil {
		t.Fatal(err)
	}
	r := p.Node
	_, systemCPU := r.System["cpu"]
	if r.MaxPods != 20 || r.PodsPerCore != 5 || systemCPU || r.Kube.Cpu().Value() != 3 || r.System.Memory().String() != "1Gi" ||
		!r.EnforcePods || r.EnforceSystem != agent.EnforceCompressible || r.EnforceKube != agent.EnforceNone {
		t.Errorf("%+v", r)
	}
	for text, want := range map[string]string{
		"maxPods: -1":                             "maxPods",
		"systemReserved: {gpu: 1}":                "systemReserved[gpu]",
		"kubeReserved: {cpu: x}":                  "kubeReserved[cpu]",
		`reservedSystemCPUs: "3-1"`:               "reservedSystemCPUs",
		"enforceNodeAllocatable: [kube-reserved]": "kubeReservedCgroup",
		"enforceNodeAllocatable: [none, pods]":    "enforceNodeAllocatable",
		"enforceNodeAllocatable: [everything]":    "enforceNodeAllocatable",
		"shutdownGracePeriod: 1ms":                "shutdownGracePeriod",
		"shutdownGracePeriodCriticalPods: 5s":     "shutdownGracePeriodCriticalPods",
		"shutdownGracePeriod: 5s\nshutdownGracePeriodByPodPriority: [{priority: 1, shutdownGracePeriodSeconds: 1}]": "shutdownGracePeriodByPodPriority",
	} {
		if _, err := policyOf(t, text); err == nil || !strings.HasPrefix(err.Error(), want) && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestShutdownTiers(t *testing.T) {
	for text, want := range map[string][]agent.ShutdownTier{
		"{}": nil,
		"{shutdownGracePeriod: 30s, shutdownGracePeriodCriticalPods: 10s}":                     {{Priority: 0, Grace: 20 * time.Second}, {Priority: 2000000000, Grace: 10 * time.Second}},
		"{shutdownGracePeriodByPodPriority: [{priority: 100, shutdownGracePeriodSeconds: 7}]}": {{Priority: 100, Grace: 7 * time.Second}},
	} {
		if p, err := policyOf(t, text); err != nil || !reflect.DeepEqual(p.Shutdown, want) {
			t.Errorf("%s: %+v, %v", text, p.Shutdown, err)
		}
	}
}
