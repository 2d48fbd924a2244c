package allocation

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// Order lets the pods that are there when the agent starts begin in the order
// of their priority: those of a priority begin when the ones above have begun,
// or can't for now. Pods of one priority begin together.
type Order struct {
	patience time.Duration // how long a priority is waited for
	mu       sync.Mutex
	ranks    []int64 // those that have not begun yet, the highest first
	open     map[string]int64
	of       map[string]int64
	wake     map[string]func()
	timer    *time.Timer
}

// NewOrder orders pods, by UID, by their rank. It waits for those of a rank for
// a time, and no longer.
func NewOrder(ranks map[string]int64, patience time.Duration) *Order {
	o := &Order{patience: patience, of: ranks, open: map[string]int64{}, wake: map[string]func(){}}
	for uid, rank := range ranks {
		o.open[uid] = rank
		if !slices.Contains(o.ranks, rank) {
			o.ranks = append(o.ranks, rank)
		}
	}
	slices.SortFunc(o.ranks, func(a, b int64) int { return cmp.Compare(b, a) })
	o.arm()
	return o
}

// Turn tells whether a pod may begin; wake is called when that changes.
func (o *Order) Turn(uid string, wake func()) bool {
	if o == nil {
		return true
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	rank, ordered := o.of[uid]
	if !ordered || len(o.ranks) == 0 || rank >= o.ranks[0] {
		return true
	}
	o.wake[uid] = wake
	return false
}

// Begun tells that a pod has begun, or that it need not be waited for.
func (o *Order) Begun(uid string) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, open := o.open[uid]; !open {
		return
	}
	delete(o.open, uid)
	o.advance()
}

// Stop ends the waiting; nothing begins for it.
func (o *Order) Stop() {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.timer != nil {
		o.timer.Stop()
	}
}

// advance goes on to the next rank if nobody of the first is waited for.
func (o *Order) advance() {
	before := len(o.ranks)
	for len(o.ranks) > 0 && !o.awaits(o.ranks[0]) {
		o.ranks = o.ranks[1:]
	}
	if len(o.ranks) == before {
		return
	}
	o.arm()
	for uid, wake := range o.wake {
		if len(o.ranks) == 0 || o.of[uid] >= o.ranks[0] {
			delete(o.wake, uid)
			wake()
		}
	}
}

func (o *Order) awaits(rank int64) bool {
	for _, r := range o.open {
		if r == rank {
			return true
		}
	}
	return false
}

// arm bounds the waiting for the first rank. Nobody waits for the last one.
func (o *Order) arm() {
	if o.timer != nil {
		o.timer.Stop()
		o.timer = nil
	}
	if len(o.ranks) < 2 {
		return
	}
	rank := o.ranks[0]
	o.timer = time.AfterFunc(o.patience, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		for uid, r := range o.open {
			if r >= rank {
				delete(o.open, uid)
			}
		}
		o.advance()
	})
}
