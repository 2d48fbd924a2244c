// Package pinning keeps which containers have processors and memory of NUMA nodes for
// themselves, as the kubelet's static CPU manager and Static memory manager policies
// do: a container of a Guaranteed pod that asks for whole processors gets as many that
// no other container runs on, until its pod has ended; all other containers share the
// rest. A topology policy says how close to each other its processors, its memory and
// its devices have to be. What is chosen is package numa's to say (place.go).
//
// Who has what is in one file, so that a later agent knows it, and so that it can tell
// containers that go on running when the policy is another one.
package pinning

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"podstead/agent/internal/numa"
	"podstead/sys"
)

// Policy says what containers get for themselves.
type Policy struct {
	Static  bool // cpuManagerPolicy: static
	Options numa.Options
	// Reserved are reservedSystemCPUs; none: as many as ReservedCPU asks for.
	Reserved    numa.CPUs
	ReservedCPU resource.Quantity
	// Period is how often containers are looked at that could not be told.
	Period time.Duration

	// Topology is topologyManagerPolicy; "" is none. PodScope: a pod's containers are
	// on the same nodes. MaxNodes is how many nodes a machine may have for it.
	Topology numa.Topology
	PodScope bool
	MaxNodes int

	StaticMemory bool // memoryManagerPolicy: Static
	// ReservedMemory is reservedMemory, by ID of the node, in bytes by resource.
	ReservedMemory map[int]map[string]uint64
}

// DefaultPeriod is the kubelet's cpuManagerReconcilePeriod.
const DefaultPeriod = 10 * time.Second

// On tells whether there is anything to keep.
func (p Policy) On() bool { return p.Static || p.StaticMemory || p.aligns() }

// aligns tells whether hints are merged.
func (p Policy) aligns() bool { return p.Topology.Policy != "" && p.Topology.Policy != numa.None }

// Grant is what a container has for itself.
type Grant struct {
	CPUs numa.CPUs `json:",omitempty"`
	// Nodes, by ID, of which it has Memory for itself, in bytes by resource.
	Nodes  numa.CPUs         `json:",omitempty"`
	Memory map[string]uint64 `json:",omitempty"`
	// Near are the nodes, by ID, that were agreed on.
	Near numa.CPUs `json:",omitempty"`
	// Passing: it is over when the pod's other containers begin.
	Passing bool `json:",omitempty"`
}

// Pod is what a pod's containers have, by name.
type Pod map[string]Grant

// Refusal is why a pod has to wait, in the kubelet's words for a pod that it rejects.
type Refusal struct{ Reason, Message string }

// Reasons of refusals.
const (
	smtAlignment = "SMTAlignmentError"
	unexpected   = "UnexpectedAdmissionError"
	affinity     = "TopologyAffinityError"
)

// Refuses tells whether a reason is that of a Refusal.
func Refuses(reason string) bool {
	return reason == smtAlignment || reason == unexpected || reason == affinity
}

// Events are told as they happen; any may be nil.
type Events struct {
	Changed func() // who has what
	// Asked: a pod asked for something ("cpu", "memory", "topology") and was refused.
	Asked func(what string, refused bool, took time.Duration)
}

// Book is who has what. The methods of a nil one say that nobody has anything.
type Book struct {
	machine  numa.Machine
	policy   Policy
	reserved numa.CPUs
	memory   numa.Memory
	file     string
	log      *slog.Logger
	events   Events

	shown atomic.Pointer[map[string]Pod] // pods, for Near

	mu      sync.Mutex
	pods    map[string]Pod    // by UID
	waiting map[string]func() // those that were refused, by UID
	// left: containers may have less than the whole machine from a policy that is not
	// in force any more.
	left bool
}

// record is the file.
type record struct {
	Policy string
	Pods   map[string]Pod
}

// Open reads who has what. Without a policy, now or before, there is no book.
func Open(file string, m numa.Machine, p Policy, events Events, log *slog.Logger) (*Book, error) {
	var old record
	data, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !p.On():
		return nil, nil
	case errors.Is(err, fs.ErrNotExist):
	case err == nil:
		if err = json.Unmarshal(data, &old); err != nil {
			log.Error("it is not known which processors containers had for themselves; all that run share them", "file", file, "error", err)
		}
	default:
		return nil, err
	}
	b := &Book{machine: m, policy: p, file: file, log: log, events: events, pods: map[string]Pod{}, waiting: map[string]func(){}}
	if p.Static {
		if b.reserved, err = reserve(m, p); err != nil {
			return nil, err
		}
	}
	if err := b.check(); err != nil {
		return nil, err
	}
	b.left = !p.On()
	b.adopt(old.Pods)
	return b, b.save()
}

// reserve chooses the processors that nobody gets alone.
func reserve(m numa.Machine, p Policy) (numa.CPUs, error) {
	if len(p.Reserved) > 0 {
		if odd := p.Reserved.Minus(m.All()); len(odd) > 0 {
			return nil, fmt.Errorf("reservedSystemCPUs: the machine has no processors %s", odd)
		}
		return p.Reserved, nil
	}
	n := int((p.ReservedCPU.MilliValue() + 999) / 1000)
	if n == 0 {
		return nil, errors.New("cpuManagerPolicy: static: the static policy requires systemReserved.cpu + kubeReserved.cpu to be greater than zero, or reservedSystemCPUs")
	}
	cpus, err := m.Take(n, numa.Options{ByCache: p.Options.ByCache}, m.All())
	if err != nil {
		return nil, fmt.Errorf("cpuManagerPolicy: static: systemReserved.cpu + kubeReserved.cpu: %w", err)
	}
	return cpus, nil
}

// check tells what of the policy the machine does not allow.
func (b *Book) check() (err error) {
	m, p := b.machine, b.policy
	if p.aligns() || p.StaticMemory {
		if most := max(p.MaxNodes, 8); len(m.Nodes) > most {
			return fmt.Errorf("topologyManagerPolicy, memoryManagerPolicy: the machine has %d NUMA nodes, more than %d", len(m.Nodes), most)
		}
	}
	if p.Options.AlignBySocket && m.Sockets() > len(m.Nodes) {
		return errors.New("cpuManagerPolicyOptions: align-by-socket: the machine has more sockets than NUMA nodes")
	}
	if !p.StaticMemory {
		return nil
	}
	reserved := make([]map[string]uint64, len(m.Nodes))
	for _, id := range slices.Sorted(maps.Keys(p.ReservedMemory)) {
		i := slices.IndexFunc(m.Nodes, func(n numa.Node) bool { return n.ID == id })
		if i < 0 {
			return fmt.Errorf("reservedMemory: the machine has no NUMA node %d", id)
		}
		reserved[i] = p.ReservedMemory[id]
	}
	if b.memory, err = numa.NewMemory(m, reserved); err != nil {
		return fmt.Errorf("reservedMemory: %w", err)
	}
	return nil
}

// adopt takes over what pods had, where it fits the machine and the policy; of the
// others it says so, and their containers share what there is.
func (b *Book) adopt(pods map[string]Pod) {
	taken := map[int]string{}
	for _, uid := range slices.Sorted(maps.Keys(pods)) {
		why := b.misfit(pods[uid], taken)
		if why == "" {
			b.pods[uid] = pods[uid]
			for _, g := range pods[uid] {
				for _, id := range g.CPUs {
					taken[id] = uid
				}
			}
			continue
		}
		b.log.Error("a pod does not keep the processors that it had for itself; its containers go on, and share", "uid", uid, "had", pods[uid], "why", why)
	}
}

func (b *Book) misfit(pod Pod, taken map[int]string) string {
	for _, name := range slices.Sorted(maps.Keys(pod)) {
		cpus, nodes := pod[name].CPUs, pod[name].Nodes
		switch {
		case len(nodes) > 0 && !b.policy.StaticMemory:
			return "memoryManagerPolicy is not Static any more"
		case len(nodes) > 0 && len(b.machine.NodeIDs(b.machine.MaskOf(nodes...))) != len(nodes):
			return fmt.Sprintf("the machine has not the NUMA nodes %s", nodes)
		case len(cpus) > 0 && !b.policy.Static:
			return "cpuManagerPolicy is not static any more"
		case len(cpus.Minus(b.machine.All())) > 0:
			return fmt.Sprintf("the machine has no processors %s", cpus.Minus(b.machine.All()))
		case len(cpus.And(b.reserved)) > 0:
			return fmt.Sprintf("processors %s are reserved now", cpus.And(b.reserved))
		}
		for _, id := range cpus {
			if uid := taken[id]; uid != "" {
				return fmt.Sprintf("processor %d is pod %s's, too", id, uid)
			}
		}
	}
	return ""
}

// save writes who has what. The lock is held, or nobody has the book yet.
func (b *Book) save() error {
	r := record{Policy: "none", Pods: b.pods}
	if b.policy.Static {
		r.Policy = "static"
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	shown := maps.Clone(b.pods)
	b.shown.Store(&shown)
	return sys.WriteFileAtomic(b.file, data, 0o600, true)
}

// changed tells those who have to know. The lock is held.
func (b *Book) changed() {
	if b.events.Changed != nil {
		go b.events.Changed()
	}
}

// taken are all processors that somebody has alone. The lock is held.
func (b *Book) taken() (cpus numa.CPUs) {
	for _, pod := range b.pods {
		for _, g := range pod {
			cpus = cpus.Or(g.CPUs)
		}
	}
	return cpus
}

// Release takes back what a pod has.
func (b *Book) Release(uid string) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.waiting, uid)
	if _, ok := b.pods[uid]; !ok {
		return
	}
	delete(b.pods, uid)
	if err := b.save(); err != nil {
		b.log.Error("processors of a pod that is over are kept for it after a restart", "uid", uid, "error", err)
	}
	b.changed()
	b.wake()
}

// wake has those ask again who wait. The lock is held.
func (b *Book) wake() {
	for _, wake := range b.waiting {
		if wake != nil {
			go wake()
		}
	}
}

// Keep takes back what all other pods have.
func (b *Book) Keep(uids map[string]bool) {
	if b == nil {
		return
	}
	b.mu.Lock()
	gone := slices.DeleteFunc(slices.Collect(maps.Keys(b.pods)), func(uid string) bool { return uids[uid] })
	b.mu.Unlock()
	for _, uid := range gone {
		b.Release(uid)
	}
}

// Of is what a container has for itself.
func (b *Book) Of(uid, container string) Grant {
	if b == nil {
		return Grant{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pods[uid][container]
}

// Exclusive tells whether any container of a pod has processors for itself.
func (b *Book) Exclusive(uid string) bool {
	if b == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, g := range b.pods[uid] {
		if len(g.CPUs) > 0 {
			return true
		}
	}
	return false
}

// Set is what a container may run on ("0-2"): all it has for itself, or what all share;
// "": nobody minds.
func (b *Book) Set(uid, container string) string {
	if b == nil {
		return ""
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if g := b.pods[uid][container]; len(g.CPUs) > 0 {
		return g.CPUs.String()
	}
	return b.shared().String()
}

// shared are the processors that nobody has alone. With strict-cpu-reservation the
// reserved ones are not among them, unless there is no other. The lock is held.
func (b *Book) shared() numa.CPUs {
	cpus := b.machine.All().Minus(b.taken())
	if less := cpus.Minus(b.reserved); b.policy.Options.StrictReservation && len(less) > 0 {
		return less
	}
	return cpus
}

// Sizes are how many processors are shared, and how many somebody has alone.
func (b *Book) Sizes() (shared, exclusive int) {
	if b == nil {
		return 0, 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.shared()), len(b.taken())
}

// PerNode is how many processors of each NUMA node somebody has alone, by its ID.
func (b *Book) PerNode() map[int]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	out, taken := map[int]int{}, b.taken()
	for i, n := range b.machine.Nodes {
		out[n.ID] = len(taken.And(b.machine.In(1 << i)))
	}
	return out
}

// Allocatable are the processors that containers may get for themselves, or all if
// they may not.
func (b *Book) Allocatable() numa.CPUs {
	if b == nil {
		return nil
	}
	return b.machine.All().Minus(b.reserved)
}

// Period is how often what could not be told is tried again.
func (b *Book) Period() time.Duration { return b.policy.Period }

// Told is called when all containers know what they may run on. A book that is only
// there for what an earlier policy left ends with that.
func (b *Book) Told() (done bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.left {
		return false
	}
	if err := os.Remove(b.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		b.log.Warn("record of an earlier CPU policy", "error", err)
	}
	return true
}
