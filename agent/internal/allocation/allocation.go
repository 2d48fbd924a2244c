// Package allocation keeps the books of what pods request of a node: who may
// start, who may grow, and who waits until others have gone. Its numbers and its
// words are the kubelet's; what is on the books is the pods' records to keep.
// A Ledger is shared by all pods' workers.
package allocation

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
)

// Shortage says what a node has not enough of for a pod.
type Shortage struct {
	Resource                  corev1.ResourceName
	Requested, Used, Capacity int64 // cpu in thousandths, memory in bytes
}

func (s *Shortage) Error() string {
	return fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", s.Resource, s.Requested, s.Used, s.Capacity)
}

// Reason is the kubelet's for a pod that it rejects.
func (s *Shortage) Reason() string { return "OutOf" + string(s.Resource) }

// Never tells whether an empty node would not do either.
func (s *Shortage) Never() bool { return s.Requested > s.Capacity }

// Ledger is what the node has for pods, and who has it.
type Ledger struct {
	// Allocatable is fixed: cpu, memory, ephemeral-storage, pods, huge pages. What it
	// does not name is not bounded, except huge pages, which are not there then.
	Allocatable corev1.ResourceList

	mu      sync.Mutex
	held    map[string]holder // by UID
	waiting map[string]Request
}

type holder struct {
	Request
	going bool // it will give back what it has
}

// Request is what a pod wants.
type Request struct {
	UID      string
	Priority int32
	Requests corev1.ResourceList
	QoS      corev1.PodQOSClass
	// Free is called, from anywhere, when it may be worth to ask again.
	Free func()
	// Preempts: pods of less priority have to go if it does not fit. They are told by
	// Yield, from anywhere, and what the other lacks; who has none never has to go.
	Preempts bool
	Yield    func(lack corev1.ResourceName)
}

// Take gives a pod what it requests instead of what it has. If that is not free
// it keeps what it has, and waits: what comes free is for those of the highest
// priority first.
func (l *Ledger) Take(r Request) *Shortage {
	l.mu.Lock()
	defer l.mu.Unlock()
	if short := l.fits(r); short != nil {
		if l.waiting == nil {
			l.waiting = map[string]Request{}
		}
		l.waiting[r.UID] = r
		if r.Preempts {
			l.preempt(r)
		}
		return short
	}
	l.hold(r)
	return nil
}

// Hold gives a pod what it requests without asking: it runs already.
func (l *Ledger) Hold(r Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hold(r)
}

func (l *Ledger) hold(r Request) {
	if l.held == nil {
		l.held = map[string]holder{}
	}
	was := l.held[r.UID]
	l.held[r.UID] = holder{Request: r}
	delete(l.waiting, r.UID)
	l.tell() // it may have shrunk
	if !was.going {
		return
	}
	for _, w := range l.waiting { // it stays after all, and they counted on its going
		if w.Preempts {
			w.Free()
		}
	}
}

// Leaves tells that a pod is about to give back what it has.
func (l *Ledger) Leaves(uid string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h, ok := l.held[uid]; ok {
		h.going = true
		l.held[uid] = h
	}
}

// Release takes back what a pod has, and ends its waiting.
func (l *Ledger) Release(uid string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, had := l.held[uid]
	_, waited := l.waiting[uid] // then others could not have what it waited for
	delete(l.held, uid)
	delete(l.waiting, uid)
	if had || waited {
		l.tell()
	}
}

// Settle ends a pod's waiting; it keeps what it has.
func (l *Ledger) Settle(uid string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.waiting, uid)
	l.tell()
}

// tell wakes those that wait and would fit now, always in the same order.
func (l *Ledger) tell() {
	first := func(a, b Request) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.UID, b.UID))
	}
	for _, w := range slices.SortedFunc(maps.Values(l.waiting), first) {
		if l.fits(w) == nil {
			w.Free()
		}
	}
}

// fits compares what a pod requests with what is neither held by others nor
// about to be taken by somebody of higher priority: that is also what pods leave
// who go for it.
func (l *Ledger) fits(r Request) *Shortage {
	used := l.used(r.UID)
	for uid, w := range l.waiting {
		if uid == r.UID || w.Priority <= r.Priority {
			continue
		}
		others := l.used(uid)
		if w.Preempts {
			others = l.staying(uid)
		}
		if l.short(w.Requests, others) == nil {
			count(used, w)
		}
	}
	return l.short(r.Requests, used)
}

// Used is what all pods have together.
func (l *Ledger) Used() map[corev1.ResourceName]int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used("")
}

func (l *Ledger) used(except string) map[corev1.ResourceName]int64 {
	used := map[corev1.ResourceName]int64{}
	for uid, h := range l.held {
		if uid != except {
			count(used, h.Request)
		}
	}
	return used
}

func count(to map[corev1.ResourceName]int64, r Request) {
	for name := range r.Requests {
		to[name] += amount(r.Requests, name)
	}
	to[corev1.ResourcePods]++
}

func (l *Ledger) short(requests corev1.ResourceList, used map[corev1.ResourceName]int64) *Shortage {
	if all := l.shortages(requests, used); len(all) > 0 {
		return &all[0]
	}
	return nil
}

func (l *Ledger) shortages(requests corev1.ResourceList, used map[corev1.ResourceName]int64) (all []Shortage) {
	names := []corev1.ResourceName{corev1.ResourcePods, corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage}
	for _, name := range slices.Sorted(maps.Keys(requests)) {
		if isHugePages(name) {
			names = append(names, name)
		}
	}
	for _, name := range names {
		if _, bounded := l.Allocatable[name]; !bounded && !isHugePages(name) {
			continue
		}
		want, capacity := amount(requests, name), amount(l.Allocatable, name)
		if name == corev1.ResourcePods {
			want = 1
		}
		if want > 0 && want > capacity-used[name] {
			all = append(all, Shortage{Resource: name, Requested: want, Used: used[name], Capacity: capacity})
		}
	}
	return all
}

// isHugePages: of these a node has what it says, and else none.
func isHugePages(name corev1.ResourceName) bool {
	return strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
}

func amount(list corev1.ResourceList, name corev1.ResourceName) int64 {
	q := list[name]
	if name == corev1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}
