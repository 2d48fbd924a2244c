// Package eviction decides when a node is short of something and which pod has
// to go for it, as the kubelet does: signals, thresholds with their grace
// periods and minimum reclaims, conditions that linger, the ranking of pods and
// the words. It is pure and has no clock: the agent reads the host
// (internal/pressure), asks Watch, and carries out what it says. Nothing is
// kept across a restart but the pods that were evicted, which is the worker's.
package eviction

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Signal is what a threshold watches, by the name that a KubeletConfiguration
// has for it.
type Signal string

// The signals. "nodefs" is where pods have their directories, "imagefs" where
// the runtime keeps images and what containers write.
const (
	MemoryAvailable  Signal = "memory.available"
	NodeFsAvailable  Signal = "nodefs.available"
	NodeFsInodes     Signal = "nodefs.inodesFree"
	ImageFsAvailable Signal = "imagefs.available"
	ImageFsInodes    Signal = "imagefs.inodesFree"
	PidsAvailable    Signal = "pid.available"
	// AllocatableMemory is what is left for pods of what is not reserved for others.
	AllocatableMemory Signal = "allocatableMemory.available"
)

// signals in the order in which they are acted on.
var signals = [...]Signal{MemoryAvailable, AllocatableMemory, NodeFsAvailable, NodeFsInodes, ImageFsAvailable, ImageFsInodes, PidsAvailable}

// Condition is what a node has whose signal is below a threshold.
func (s Signal) Condition() corev1.NodeConditionType {
	switch s {
	case MemoryAvailable, AllocatableMemory:
		return corev1.NodeMemoryPressure
	case PidsAvailable:
		return corev1.NodePIDPressure
	}
	return corev1.NodeDiskPressure
}

// Resource is what the pods are short of, as the evicted pod's message has it.
func (s Signal) Resource() corev1.ResourceName {
	switch s {
	case MemoryAvailable, AllocatableMemory:
		return corev1.ResourceMemory
	case NodeFsAvailable, ImageFsAvailable:
		return corev1.ResourceEphemeralStorage
	case PidsAvailable:
		return "pids"
	}
	return "inodes"
}

// Disk tells whether the signal is one of a file system.
func (s Signal) Disk() bool { return s.Condition() == corev1.NodeDiskPressure }

// Reading is a signal's value: bytes, inodes or processes.
type Reading struct{ Available, Capacity int64 }

// Observation is what was read of the host. A signal that could not be read is
// not in it, and none of its thresholds is met.
type Observation map[Signal]Reading

// Amount is a quantity or, if that is 0, a share of the capacity.
type Amount struct {
	Quantity int64
	Share    float64
}

// Of a capacity.
func (a Amount) Of(capacity int64) int64 { return a.of(capacity) }

func (a Amount) of(capacity int64) int64 {
	if a.Quantity != 0 {
		return a.Quantity
	}
	return int64(float64(capacity) * a.Share)
}

// Threshold is met while less than its Amount is available.
type Threshold struct {
	Signal
	Amount
	Soft       bool
	Grace      time.Duration // of a soft one: how long it has to be met
	MinReclaim Amount        // how much more than the Amount has to be available again
	// Spares: images go for it, and pods do not.
	Spares bool
}

// Watch remembers since when thresholds are met. Its user serializes calls.
type Watch struct {
	Policy

	first map[int]time.Time // when the threshold of that index was first seen met
	due   map[int]bool      // it was acted on, and not enough is reclaimed yet
	last  map[corev1.NodeConditionType]time.Time
}

// Met is a threshold that is met, and by what.
type Met struct {
	Threshold
	Reading
	Since time.Time
}

// limit is the threshold's amount on this host.
func (m Met) limit() int64 { return m.Amount.of(m.Capacity) }

// Verdict is what follows from an observation.
type Verdict struct {
	// Act is what to reclaim for now; nil: nothing.
	Act *Met
	// Met are all thresholds below which signals are, acted on or not.
	Met []Met
	// Conditions the node has, sorted; they stay a while after the last threshold
	// was met, so that they don't flap.
	Conditions []corev1.NodeConditionType
	// Soon: memory is near its threshold, and it goes fast; ask again soon.
	Soon bool
	// Wake is when a grace period or a condition is over; zero: none.
	Wake time.Time
}

// Look judges an observation.
func (w *Watch) Look(now time.Time, seen Observation) Verdict {
	if w.first == nil {
		w.first, w.due, w.last = map[int]time.Time{}, map[int]bool{}, map[corev1.NodeConditionType]time.Time{}
	}
	var v Verdict
	var ready []Met
	for i, t := range w.Thresholds {
		r, known := seen[t.Signal]
		limit := t.Amount.of(r.Capacity)
		v.Soon = v.Soon || known && t.Condition() == corev1.NodeMemoryPressure && r.Available < 2*limit
		if w.due[i] {
			limit += t.MinReclaim.of(r.Capacity)
		}
		if !known || r.Available >= limit {
			delete(w.first, i)
			delete(w.due, i)
			continue
		}
		since, ok := w.first[i]
		if !ok {
			since = now
			w.first[i] = now
		}
		m := Met{Threshold: t, Reading: r, Since: since}
		v.Met = append(v.Met, m)
		if !t.Spares {
			w.last[t.Condition()] = now
		}
		if over := since.Add(t.Grace); now.Before(over) {
			v.wake(over)
			continue
		}
		w.due[i] = true
		ready = append(ready, m)
	}
	w.conditions(now, &v)
	if len(ready) > 0 {
		act := slices.MinFunc(ready, func(a, b Met) int {
			return cmp.Or(bit(a.Spares)-bit(b.Spares), a.order()-b.order(), bit(a.Soft)-bit(b.Soft))
		})
		v.Act = &act
	}
	return v
}

func (w *Watch) conditions(now time.Time, v *Verdict) {
	for c, at := range w.last {
		over := at.Add(w.Transition)
		if at.Equal(now) || now.Before(over) {
			v.Conditions = append(v.Conditions, c)
			v.wake(over)
			continue
		}
		delete(w.last, c)
	}
	slices.Sort(v.Conditions)
}

func (v *Verdict) wake(t time.Time) {
	if v.Wake.IsZero() || t.Before(v.Wake) {
		v.Wake = t
	}
}

func (s Signal) order() int { return slices.Index(signals[:], s) }

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// String says what is short, for the log and the list of problems.
func (m Met) String() string {
	return fmt.Sprintf("%s is %s of %s, the threshold is %s", m.Signal, m.quantity(m.Available), m.quantity(m.Capacity), m.quantity(m.limit()))
}

func (m Met) quantity(n int64) string {
	if r := m.Resource(); r == "inodes" || r == "pids" {
		return resource.NewQuantity(n, resource.DecimalSI).String()
	}
	return resource.NewQuantity(n, resource.BinarySI).String()
}
