package pinning

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/numa"
	"podstead/agent/internal/request"
)

// Ask is a pod that wants to begin.
type Ask struct {
	Pod *corev1.Pod
	// Wake is called, from anywhere, when it may be worth to ask again.
	Wake func()
	// Devices says on which nodes the devices of a container are, or of the whole pod
	// if it has no name; nil: it has none.
	Devices func(m numa.Machine, container string) [][]numa.Hint
}

// Admit gives a pod's containers what they are to have for themselves, all or nothing.
// What they have already they keep, unless they are to have another amount by now.
func (b *Book) Admit(a Ask) *Refusal {
	if b == nil || !b.policy.On() {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	uid, began := string(a.Pod.UID), time.Now()
	had, known := b.pods[uid]
	if known && b.settled(a.Pod, had) {
		return nil
	}
	delete(b.pods, uid)
	next, err := b.place(a)
	if err == nil {
		b.pods[uid] = next
		err = b.save()
	}
	b.count(a.Pod, err, time.Since(began))
	if err != nil {
		if delete(b.pods, uid); known {
			b.pods[uid] = had
		}
		b.waiting[uid] = a.Wake
		return refusal(err)
	}
	delete(b.waiting, uid)
	if b.changed(); known {
		b.wake() // it may have less than before
	}
	return nil
}

// settled tells whether all containers of a pod have what they are to have.
func (b *Book) settled(pod *corev1.Pod, has Pod) bool {
	list, _ := request.InTurn(pod)
	for _, c := range list {
		g, ok := has[c.Name]
		if !ok || b.policy.Static && len(g.CPUs) != Wants(pod, c) || b.policy.StaticMemory && !maps.Equal(g.Memory, wantsMemory(pod, c)) {
			return false
		}
	}
	return true
}

// count tells what a pod asked for.
func (b *Book) count(pod *corev1.Pod, err error, took time.Duration) {
	if b.events.Asked == nil {
		return
	}
	cpu, memory := false, false
	list, _ := request.InTurn(pod)
	for _, c := range list {
		cpu = cpu || b.policy.Static && Wants(pod, c) > 0
		memory = memory || b.policy.StaticMemory && len(wantsMemory(pod, c)) > 0
	}
	ofMemory, misaligned := errors.Is(err, errMemory), errors.Is(err, errAffinity)
	if cpu {
		b.events.Asked("cpu", err != nil && !ofMemory && !misaligned, took)
	}
	if memory {
		b.events.Asked("memory", ofMemory, took)
	}
	if b.policy.aligns() {
		b.events.Asked("topology", misaligned, took)
	}
}

var (
	errAffinity = errors.New("Resources cannot be allocated with Topology locality")
	errMemory   = errors.New("memory")
)

func refusal(err error) *Refusal {
	var smt *numa.SMTError
	switch {
	case errors.As(err, &smt):
		return &Refusal{smtAlignment, smt.Error()}
	case errors.Is(err, errAffinity):
		return &Refusal{affinity, err.Error()}
	}
	return &Refusal{unexpected, fmt.Sprintf("Allocate failed due to %v, which is unexpected", err)}
}

// memoryError says what of memory is not there, as it is.
type memoryError struct{ error }

func (e memoryError) Is(target error) bool { return target == errMemory }

// placing is what is left for the next container of a pod.
type placing struct {
	*Book
	ask         Ask
	free, reuse numa.CPUs
	others      []numa.Block // memory that is taken
}

// place chooses what the containers of a pod are to have. The lock is held.
func (b *Book) place(a Ask) (Pod, error) {
	p := placing{Book: b, ask: a, others: b.blocks()}
	if b.policy.Static {
		p.free = b.machine.All().Minus(b.reserved).Minus(b.taken())
	}
	var near numa.Mask
	if b.policy.aligns() && b.policy.PodScope {
		var err error
		if near, err = p.agree("", podCPUs(a.Pod), podMemory(a.Pod)); err != nil {
			return nil, err
		}
	}
	next := Pod{}
	list, passing := request.InTurn(a.Pod)
	for _, c := range list {
		g, err := p.grant(c, near)
		if err != nil {
			return nil, err
		}
		g.Passing = passing[c.Name]
		next[c.Name] = g
		p.free = p.free.Minus(g.CPUs)
		if p.reuse = p.reuse.Minus(g.CPUs); g.Passing {
			p.reuse = p.reuse.Or(g.CPUs)
		}
		if block := b.block(g); block.Nodes != 0 {
			if g.Passing { // only whose company its nodes keep stays
				block.Amount = nil
			}
			p.others = append(p.others, block)
		}
	}
	return next, nil
}

// grant chooses what one container is to have, near nodes that were agreed on for all.
func (p placing) grant(c *corev1.Container, near numa.Mask) (g Grant, err error) {
	n, memory := 0, map[string]uint64(nil)
	if p.policy.Static {
		n = Wants(p.ask.Pod, c)
	}
	if p.policy.StaticMemory {
		memory = wantsMemory(p.ask.Pod, c)
	}
	if p.policy.aligns() && !p.policy.PodScope {
		if near, err = p.agree(c.Name, n, memory); err != nil {
			return g, err
		}
	}
	if near != p.machine.AllNodes() {
		g.Near = p.machine.NodeIDs(near)
	}
	if n > 0 {
		pools := []numa.CPUs{p.reuse, p.free}
		if near != 0 {
			in := p.machine.Aligned(near, p.policy.Options)
			pools = []numa.CPUs{p.reuse.And(in), p.free.And(in), p.reuse, p.free}
		}
		if g.CPUs, err = p.machine.Take(n, p.policy.Options, pools...); err != nil {
			return g, err
		}
	}
	if len(memory) == 0 {
		return g, nil
	}
	nodes, err := p.memory.Take(memory, near, p.others)
	if err != nil {
		return g, memoryError{err}
	}
	g.Nodes, g.Memory = p.machine.NodeIDs(nodes), memory
	return g, nil
}

// agree finds nodes for all that a container needs, or the whole pod.
func (p placing) agree(container string, cpus int, memory map[string]uint64) (numa.Mask, error) {
	var needs [][]numa.Hint
	if p.policy.Static && cpus > 0 {
		needs = append(needs, p.machine.CPUHints(cpus, p.free.Or(p.reuse), p.policy.Options))
	}
	if p.policy.StaticMemory && len(memory) > 0 {
		needs = append(needs, p.memory.Hints(memory, p.others))
	}
	if p.ask.Devices != nil {
		needs = append(needs, p.ask.Devices(p.machine, container)...)
	}
	best, ok := p.policy.Topology.Merge(p.machine, needs)
	if !ok {
		return 0, errAffinity
	}
	return best.Nodes, nil
}

// block is the memory of a grant.
func (b *Book) block(g Grant) numa.Block {
	return numa.Block{Nodes: b.machine.MaskOf(g.Nodes...), Amount: g.Memory}
}

// blocks are what pods have of memory: an init container's is used again by those
// after it. The lock is held.
func (b *Book) blocks() (out []numa.Block) {
	for _, pod := range b.pods {
		stay, pass := map[numa.Mask]map[string]uint64{}, map[numa.Mask]map[string]uint64{}
		for _, g := range pod {
			block := b.block(g)
			if block.Nodes == 0 {
				continue
			}
			to := stay
			if g.Passing {
				to = pass
			}
			if to[block.Nodes] == nil {
				to[block.Nodes] = map[string]uint64{}
			}
			for name, n := range block.Amount {
				if g.Passing {
					n = max(n, to[block.Nodes][name])
				} else {
					n += to[block.Nodes][name]
				}
				to[block.Nodes][name] = n
			}
		}
		for nodes, amount := range pass {
			if stay[nodes] == nil {
				stay[nodes] = map[string]uint64{}
			}
			for name, n := range amount {
				stay[nodes][name] = max(n, stay[nodes][name])
			}
		}
		for nodes, amount := range stay {
			out = append(out, numa.Block{Nodes: nodes, Amount: amount})
		}
	}
	return out
}

// guaranteed tells whether a pod's containers can have something for themselves.
func guaranteed(pod *corev1.Pod) bool {
	return pod.Spec.Resources == nil && request.QoS(pod) == corev1.PodQOSGuaranteed
}

// Wants is how many processors a container is to have for itself, 0 if it shares: it
// has to be of a Guaranteed pod, whose containers have resources of their own, and ask
// for whole ones.
func Wants(pod *corev1.Pod, c *corev1.Container) int {
	cpu := c.Resources.Requests.Cpu().MilliValue()
	if cpu == 0 || cpu%1000 != 0 || !guaranteed(pod) {
		return 0
	}
	return int(cpu / 1000)
}

// wantsMemory is what a container is to have for itself of memory, in bytes.
func wantsMemory(pod *corev1.Pod, c *corev1.Container) map[string]uint64 {
	if !guaranteed(pod) {
		return nil
	}
	out := map[string]uint64{}
	for name, q := range c.Resources.Requests {
		if n := q.Value(); n > 0 && (name == corev1.ResourceMemory || strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)) {
			out[string(name)] = uint64(n)
		}
	}
	return out
}

// podCPUs is how many processors a pod has at once at most.
func podCPUs(pod *corev1.Pod) (most int) {
	all := most
	list, passing := request.InTurn(pod)
	for _, c := range list {
		n := Wants(pod, c)
		if most = max(most, all+n); !passing[c.Name] {
			all += n
		}
	}
	return most
}

// podMemory is how much memory it has at once at most.
func podMemory(pod *corev1.Pod) map[string]uint64 {
	all, most := map[string]uint64{}, map[string]uint64{}
	list, passing := request.InTurn(pod)
	for _, c := range list {
		for name, n := range wantsMemory(pod, c) {
			if most[name] = max(most[name], all[name]+n); !passing[c.Name] {
				all[name] += n
			}
		}
	}
	return most
}

// Near are the nodes, by ID, near which the devices of a container are to be, none if
// it does not matter; strict: and nowhere else. It waits for nobody: who gives devices
// asks, and is asked for hints while a pod is admitted.
func (b *Book) Near(uid, container string) (nodes []int, strict bool) {
	if b == nil {
		return nil, false
	}
	p := b.policy.Topology.Policy
	return (*b.shown.Load())[uid][container].Near, p == numa.Restricted || p == numa.SingleNode
}

// Memory is what each node has for containers, by its ID; nil: nobody gets any for
// itself.
func (b *Book) Memory() map[int]map[string]uint64 {
	if b == nil || !b.policy.StaticMemory {
		return nil
	}
	out := map[int]map[string]uint64{}
	for i, n := range b.machine.Nodes {
		out[n.ID] = maps.Clone(b.memory.Has(i))
	}
	return out
}
