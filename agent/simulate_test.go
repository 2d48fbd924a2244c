package agent

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/eviction"
	"podstead/cri"
)

// TestRandomFaults lets pods be applied, edited and deleted while calls fail or
// are slow, containers die and the agent restarts, and then checks that all
// comes right once the faults stop: no pod is lost, none is left, and (in the
// fake) no instance was started beside another and no end was brutal. A seed
// that failed once stays in the list.
func TestRandomFaults(t *testing.T) {
	seeds := []uint64{1, 2, 3, 12692728673932569097}
	n := 12
	if testing.Short() {
		n = 5
	}
	for range n {
		seeds = append(seeds, rand.Uint64())
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			simulate(t, func(b *bench) { faults(b, rand.New(rand.NewPCG(seed, 0)), nil) })
			simulate(t, func(b *bench) { faults(b, rand.New(rand.NewPCG(seed, 0)), rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

// faults lets memory be short now and then, too, if short is not nil.
func faults(b *bench, r, short *rand.Rand) {
	b.uses(map[string]uint64{"a": 100 * mib, "b": 200 * mib})
	faulty := true
	b.rt.mu.Lock()
	var mu sync.Mutex // the runtime's calls come from many goroutines
	roll := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return r.IntN(n)
	}
	b.rt.life = func(string, uint32) life {
		return life{runs: []time.Duration{0, time.Second, time.Minute}[roll(3)], exit: int32(roll(2)), ignores: time.Duration(roll(5)) * time.Second}
	}
	b.rt.fail = func(verb, _ string) error {
		if faulty && roll(100) < 10 {
			return cri.Errorf(codes.Unavailable, "%s: by accident", verb)
		}
		return nil
	}
	b.rt.slow = func(string, string) time.Duration {
		if faulty && roll(100) < 20 {
			return time.Duration(roll(5000)) * time.Millisecond
		}
		return 0
	}
	b.rt.mu.Unlock()
	chance := func(percent int) bool { return roll(100) < percent }
	wanted := map[string]bool{}
	for range 40 {
		name := fmt.Sprintf("p%d", roll(3))
		switch {
		case chance(50):
			b.apply(randomPod(roll, name))
			wanted[name] = true
		case chance(50) && wanted[name]:
			b.delete(name, nil)
			delete(wanted, name)
		case chance(30):
			b.stop()
			b.boot()
		case chance(20):
			for _, id := range b.rt.running("b") {
				b.rt.kill(id, 9)
			}
		}
		if short != nil {
			b.host.set(eviction.MemoryAvailable, []int64{90, 150, 900, 900}[short.IntN(4)]*mib, 1000*mib)
		}
		b.after(time.Duration(roll(20000)) * time.Millisecond)
	}
	if short != nil {
		b.host.set(eviction.MemoryAvailable, 900*mib, 1000*mib)
	}
	b.rt.mu.Lock()
	faulty = false
	b.rt.life = nil
	b.rt.mu.Unlock()
	b.after(20 * time.Minute)
	pods := b.agent.board.list()
	if len(pods) != len(wanted) {
		b.Errorf("%d pods, want %v", len(pods), wanted)
	}
	for _, p := range pods {
		evicted := short != nil && p.Status.Reason == "Evicted" && p.Status.Phase == corev1.PodFailed
		if !wanted[p.Name] || !settled(p) && !evicted {
			posted, _ := b.agent.board.get("default", p.Name)
			b.Errorf("pod %s is %s, %+v, why %+v", p.Name, p.Status.Phase, p.Status.ContainerStatuses, posted.why)
		}
	}
	for name := range wanted {
		b.delete(name, nil)
	}
	b.after(10 * time.Minute)
	b.gone()
}

// settled tells whether every container runs, or has ended for good.
func settled(p *corev1.Pod) bool {
	for _, c := range p.Status.ContainerStatuses {
		ended := c.State.Terminated != nil && (p.Spec.RestartPolicy == corev1.RestartPolicyNever ||
			p.Spec.RestartPolicy == corev1.RestartPolicyOnFailure && c.State.Terminated.ExitCode == 0)
		if !ended && !(c.State.Running != nil && c.Ready) {
			return false
		}
	}
	return true
}

func randomPod(roll func(int) int, name string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n", name)
	fmt.Fprintf(&s, "  restartPolicy: %s\n", []string{"Always", "Always", "OnFailure", "Never"}[roll(4)])
	if roll(4) == 0 {
		fmt.Fprintf(&s, "  hostname: h%d\n", roll(2))
	}
	if roll(2) == 0 {
		s.WriteString("  initContainers:\n  - {name: side, image: \"app:1\", restartPolicy: Always}\n")
	}
	fmt.Fprintf(&s, "  containers:\n  - {name: a, image: \"app:%d\"}\n", 1+roll(2))
	if roll(2) == 0 {
		s.WriteString("  - {name: b, image: \"app:1\"}\n")
	}
	return s.String()
}
