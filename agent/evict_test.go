package agent

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/eviction"
)

// fakeHost is a node's memory and disk.
type fakeHost struct {
	mu   sync.Mutex
	seen eviction.Observation
}

func (h *fakeHost) read() (eviction.Observation, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.seen), nil
}

// wait is of a kernel that never tells of stalls.
func (h *fakeHost) wait(ctx context.Context, _ func()) error {
	<-ctx.Done()
	return ctx.Err()
}

// disk is the one that images are on. The real one may be full.
func (h *fakeHost) disk(string) (size, free uint64, err error) { return 100 << 30, 90 << 30, nil }

func (h *fakeHost) set(s eviction.Signal, available, capacity int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen = maps.Clone(h.seen)
	if h.seen == nil {
		h.seen = eviction.Observation{}
	}
	h.seen[s] = eviction.Reading{Available: available, Capacity: capacity}
}

// uses has the runtime report memory of containers, by name, and returns what is
// in use by those that run.
func (b *bench) uses(memory map[string]uint64) {
	b.rt.stats = func(c *fakeContainer) *runtimeapi.ContainerStats {
		return &runtimeapi.ContainerStats{
			Attributes: &runtimeapi.ContainerAttributes{Id: c.id, Metadata: c.config.Metadata, Labels: c.config.Labels},
			Memory:     &runtimeapi.MemoryUsage{WorkingSetBytes: &runtimeapi.UInt64Value{Value: memory[c.name()]}},
		}
	}
}

const mib = 1 << 20

func burning(name string, priority int) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  priority: %d
  terminationGracePeriodSeconds: 20
  containers:
  - {name: %s, image: "app:1", resources: {requests: {memory: 100Mi}}, volumeMounts: [{name: v, mountPath: /v}]}
  volumes: [{name: v, emptyDir: {}}]
`, name, priority, name)
}

// TestMemoryGoesToTheModest has the node run out of memory: the pod goes that
// uses more than it asked for, alone if that is enough.
func TestMemoryGoesToTheModest(t *testing.T) {
	simulate(t, func(b *bench) {
		b.uses(map[string]uint64{"hog": 500 * mib, "modest": 50 * mib, "big": 300 * mib})
		for _, name := range []string{"hog", "modest", "big"} {
			b.apply(burning(name, 0))
		}
		b.after(time.Minute)
		scratch := filepath.Join(b.agent.node.podDir(string(b.pod("hog").UID)), "volumes/kubernetes.io~empty-dir/v")
		if _, err := os.Stat(scratch); err != nil {
			b.Fatal(err)
		}
		b.rt.script(func() {
			b.rt.ended = func(name string) {
				if name == "hog" {
					b.host.set(eviction.MemoryAvailable, 600*mib, 1000*mib)
				}
			}
		})
		b.host.set(eviction.MemoryAvailable, 90*mib, 1000*mib)
		b.after(2 * time.Minute)
		b.evicted("hog", "The node was low on resource: memory. Threshold quantity: 100Mi, available: 90Mi. "+
			"Container hog was using 500Mi, request is 100Mi, has larger consumption of memory. ")
		if _, err := os.Stat(scratch); !os.IsNotExist(err) {
			b.Errorf("the evicted pod still has its emptyDir: %v", err)
		}
		for _, name := range []string{"modest", "big"} {
			if !b.ready(name) {
				b.Errorf("%s is gone: %+v", name, b.pod(name).Status)
			}
		}

		// It stays so, also for the next agent, until it is deleted.
		b.stop()
		b.boot()
		b.after(time.Minute)
		b.evicted("hog", "The node was low on resource: memory. ")
		b.delete("hog", nil)
		b.after(time.Minute)
		b.apply(burning("hog", 0))
		b.after(time.Minute)
		if !b.ready("hog") {
			b.Errorf("%+v", b.pod("hog").Status)
		}
	})
}

func (b *bench) evicted(name, message string) {
	b.Helper()
	st := b.pod(name).Status
	if st.Phase != corev1.PodFailed || st.Reason != "Evicted" || !strings.HasPrefix(st.Message, message) {
		b.Errorf("%s is %s, %s: %s", name, st.Phase, st.Reason, st.Message)
	}
	for _, c := range st.Conditions {
		if c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == "TerminationByKubelet" {
			return
		}
	}
	b.Errorf("%s has no condition DisruptionTarget: %+v", name, st.Conditions)
}

// TestFullDiskOfALaptopEvictsNobody: without a configuration, a full disk is a
// problem that is told of, and no reason to stop anything.
func TestFullDiskOfALaptopEvictsNobody(t *testing.T) {
	simulate(t, func(b *bench) {
		b.host.set(eviction.NodeFsAvailable, 5*mib, 100*mib)
		b.apply(burning("a", 0))
		b.after(10 * time.Minute)
		if !b.ready("a") {
			b.Errorf("%+v", b.pod("a").Status)
		}
		problems, err := backend{b.agent}.Problems(b.Context())
		if err != nil || len(problems) != 1 || problems[0].Message != "nodefs.available is 5Mi of 100Mi, the threshold is 10Mi" {
			b.Errorf("%v %+v", err, problems)
		}
	})
}

// TestOwnLimitEvicts has a pod fill its emptyDir beyond the limit that it gave.
func TestOwnLimitEvicts(t *testing.T) {
	simulate(t, func(b *bench) {
		b.uses(nil)
		b.apply(strings.Replace(burning("a", 0), "emptyDir: {}", "emptyDir: {sizeLimit: 1Mi}", 1))
		b.apply(burning("b", 0))
		b.after(time.Minute)
		fill := func(name string) {
			file := filepath.Join(b.agent.node.podDir(string(b.pod(name).UID)), "volumes/kubernetes.io~empty-dir/v/file")
			if err := os.WriteFile(file, make([]byte, 2*mib), 0o644); err != nil {
				b.Fatal(err)
			}
		}
		fill("a")
		fill("b")
		b.after(11 * time.Minute)
		b.evicted("a", `Usage of EmptyDir volume "v" exceeds the limit "1Mi". `)
		if !b.ready("b") {
			b.Errorf("%+v", b.pod("b").Status)
		}
	})
}

// TestPressureHoldsNewPods: while memory is short, a pod that promises nothing
// waits and says for what, and starts when it is over.
func TestPressureHoldsNewPods(t *testing.T) {
	simulate(t, func(b *bench) {
		b.uses(nil)
		b.host.set(eviction.MemoryAvailable, 90*mib, 1000*mib)
		b.after(20 * time.Second)
		b.apply(burning("modest", 0))
		b.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: any}\nspec: {containers: [{name: c, image: \"app:1\"}]}\n")
		b.after(time.Minute)
		p, _ := b.agent.board.get("default", "any")
		if !b.ready("modest") || p.pod.Status.Phase != corev1.PodPending || len(p.why.Waiting) != 1 ||
			!strings.Contains(p.why.Waiting[0].Message, "The node had condition: [MemoryPressure]") {
			b.Errorf("%+v %+v", p.pod.Status, p.why)
		}
		told := func() (list []string) {
			for _, e := range b.agent.node.events.OfNode() {
				list = append(list, e.Type+" "+e.Reason+": "+e.Message)
			}
			return list
		}
		if got := told(); !slices.Equal(got, []string{"Normal NodeHasInsufficientMemory: Node n1 status is now: NodeHasInsufficientMemory",
			"Warning EvictionThresholdMet: Attempting to reclaim memory"}) {
			b.Errorf("events of the node: %q", got)
		}
		defer func() {
			if got := told(); len(got) != 3 || got[2] != "Normal NodeHasSufficientMemory: Node n1 status is now: NodeHasSufficientMemory" {
				b.Errorf("events of the node in the end: %q", got)
			}
		}()
		b.host.set(eviction.MemoryAvailable, 900*mib, 1000*mib)
		b.after(4 * time.Minute)
		if b.ready("any") {
			b.Error("it starts while memory may be short again in a moment")
		}
		b.after(2 * time.Minute)
		if !b.ready("any") {
			b.Errorf("%+v", b.pod("any").Status)
		}
	})
}
