package agent

import (
	"fmt"
	"regexp"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"podstead/agent/client"
	"podstead/agent/internal/numa"
	"podstead/agent/internal/pinning"
)

// TestSimulationOfProcessors is TestSimulation where containers have processors of
// their own, of a machine with four, one of them reserved.
func TestSimulationOfProcessors(t *testing.T) {
	manyLives(t, *simTime/3, kind{gates: true, pins: true})
}

// TestProcessorsOfOld lives through such a world that once showed a bug: a pod that
// became another one had less, and nobody told those who waited.
func TestProcessorsOfOld(t *testing.T) {
	live(t, 8877730444991229810, kind{gates: true, pins: true})
}

// pinned lets an agent believe in such a machine.
func (s *story) pinned(cfg *Config) {
	policy := DefaultPolicy()
	policy.Pinning.Static, policy.Pinning.Reserved = true, numa.CPUs{0}
	cfg.Policy = &policy
	cfg.machine = &numa.Machine{Nodes: []numa.Node{{Memory: map[string]uint64{}, Distances: []int{10}}}}
	for i := range 4 {
		cfg.machine.CPUs = append(cfg.machine.CPUs, numa.CPU{ID: i, Core: i})
	}
}

func enoughCPU() corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100")}
}

var requestsCPU = regexp.MustCompile(`    resources: \{requests: \{cpu: \d00m\}\}\n`)
var eachImage = regexp.MustCompile(`(?m)^    image: app:\d$`)

// guaranteed has all containers of a pod ask for one processor, or for two.
func (s *story) guaranteed(name, manifest string) string {
	if !s.pins || s.world.Roll(3, "pinned", name) == 0 {
		return manifest
	}
	n := 1 + s.world.Roll(2, "processors", name)
	manifest = requestsCPU.ReplaceAllString(manifest, "")
	return eachImage.ReplaceAllString(manifest, "$0\n    resources: {limits: {cpu: "+fmt.Sprint(n)+", memory: 64Mi}}")
}

// checkPins: who runs runs where it is to run, and nobody on what another has alone;
// what pods of before had is free.
func (s *story) checkPins() {
	if !s.pins {
		return
	}
	book, owners := s.agent.node.pins, map[int]string{}
	for at, cpus := range s.world.CPUs() {
		if want := book.Set(at[0], at[1]); cpus != want {
			s.Errorf("%v runs on %q, want %q", at, cpus, want)
		}
		for _, id := range book.Of(at[0], at[1]).CPUs {
			if other := owners[id]; other != "" {
				s.Errorf("processor %d is that of %s and of %v", id, other, at)
			}
			owners[id] = fmt.Sprint(at)
		}
	}
	if _, n := book.Sizes(); len(s.agent.board.list()) == 0 && n > 0 {
		s.Errorf("%d processors are taken, and there are no pods", n)
	}
}

// waitsForProcessors tells whether a pod rightly waits as others have what it needs.
func (s *story) waitsForProcessors(p *corev1.Pod) bool {
	posted, _ := s.agent.board.get("default", p.Name)
	refused := slices.ContainsFunc(posted.why.Waiting, func(w client.Wait) bool { return pinning.Refuses(w.Reason) })
	if !s.pins || !refused {
		return false
	}
	_, taken := s.agent.node.pins.Sizes()
	most := 0
	for i := range p.Spec.Containers {
		most += pinning.Wants(p, &p.Spec.Containers[i])
	}
	for i := range p.Spec.InitContainers {
		most += pinning.Wants(p, &p.Spec.InitContainers[i])
	}
	return taken+most > 3
}
