package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"podstead/network/internal/bridge"
	"podstead/network/internal/ipam"
	"podstead/sys"
)

// slots are network namespaces that are connected to the bridge already and
// wait for a pod. Nothing is recorded of them: a namespace that is only a file of
// ours ends with the process, its link ends with it, and its addresses are given
// out in memory alone.
//
//	made ── ready ── claimed by Namespace ── the pod's, from Setup on
//	          │         └── given back by Teardown
//	          └── dropped: by Destroy, Close, with the bridge or its subnets
type slots struct {
	b *builtin
	// usable tells whether new pods are connected by the built-in network.
	usable func() bool
	later  func(func(context.Context)) bool

	mu      sync.Mutex
	want    int
	ready   []*slot
	claimed map[string]*slot // by pod ID
	filling bool             // somebody makes slots
	again   bool             // and is to look again when done
	paused  bool             // nobody may
	filled  *sync.Cond       // filling has ended
}

type slot struct {
	ns   *os.File
	path string // of the pod's namespace, once it is claimed
	link string
	ips  []netip.Addr
}

func newSlots(want int, b *builtin, usable func() bool, later func(func(context.Context)) bool) *slots {
	s := &slots{want: want, b: b, usable: usable, later: later, claimed: map[string]*slot{}, paused: true}
	s.filled = sync.NewCond(&s.mu)
	return s
}

func (s *slots) wanted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.want
}

// setWant changes how many slots there are to be.
func (s *slots) setWant(want int) error {
	s.mu.Lock()
	s.want = want
	surplus := slices.Clone(s.ready[min(want, len(s.ready)):])
	s.ready = s.ready[:min(want, len(s.ready))]
	s.mu.Unlock()
	var errs []error
	for _, c := range surplus {
		errs = append(errs, s.end(c))
	}
	s.fill()
	return errors.Join(errs...)
}

// claim binds the namespace of a slot to path for a pod, and reports whether
// there was one.
func (s *slots) claim(podID, path string) (bool, error) {
	if s.wanted() == 0 {
		return false, nil
	}
	if !s.usable() {
		s.drop()
		return false, nil
	}
	s.mu.Lock()
	if len(s.ready) == 0 || s.claimed[podID] != nil {
		s.mu.Unlock()
		return false, nil
	}
	free := s.ready[0]
	s.ready = s.ready[1:]
	free.path = path
	s.claimed[podID] = free
	s.mu.Unlock()

	if err := sys.BindNamespace(free.ns, path); err != nil {
		s.giveBack(podID)
		return false, err
	}
	return true, nil
}

// take returns the slot whose namespace a pod has, which is the pod's from now on,
// or nil.
func (s *slots) take(podID, path string) *slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.claimed[podID]
	if c == nil || c.path != path {
		return nil
	}
	delete(s.claimed, podID)
	c.ns.Close() // it is bound
	return c
}

// has tells whether a pod has the namespace of a slot.
func (s *slots) has(podID, path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.claimed[podID]
	return c != nil && c.path == path
}

// giveBack ends a slot that a pod claimed and did not take.
func (s *slots) giveBack(podID string) error {
	s.mu.Lock()
	c := s.claimed[podID]
	delete(s.claimed, podID)
	s.mu.Unlock()
	if c == nil {
		return nil
	}
	return s.end(c)
}

// end cuts a slot off. The kernel deletes its link with the namespace, which may
// be bound somewhere still.
func (s *slots) end(c *slot) error {
	err := s.b.bridge.Detach(c.link)
	c.ns.Close() // may have happened when it was bound
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.b.pool.Put(c.ips)
	return err
}

// fill makes slots until there are enough, unless pods are being connected: they
// come first, and the last of them calls it again.
func (s *slots) fill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.filling {
		s.again = true
	} else if s.want > 0 && !s.paused && len(s.ready) < s.want {
		s.filling = s.later(s.make)
	}
}

// settle is how long nobody has connected a pod before slots are made: what comes
// next for the last one has precedence.
const settle = 2 * time.Millisecond

// make is fill's work.
func (s *slots) make(ctx context.Context) {
	for more := true; more; {
		for s.lacks(ctx) && s.makeOne() {
		}
		s.mu.Lock()
		more = s.again && ctx.Err() == nil
		s.again, s.filling = false, more
		s.filled.Broadcast()
		s.mu.Unlock()
	}
}

func (s *slots) makeOne() bool {
	made, err := s.b.newSlot()
	if full := new(ipam.ExhaustedError); errors.As(err, &full) {
		return false
	}
	if err != nil {
		s.b.log.Warn("no network is made ready for the next pods", "error", err)
		return false
	}
	s.mu.Lock()
	surplus := len(s.ready) >= s.want // there are to be fewer since
	if !surplus {
		s.ready = append(s.ready, made)
	}
	s.mu.Unlock()
	if !surplus {
		return true
	}
	if err := s.end(made); err != nil {
		s.b.log.Warn("a network that is not wanted any more is left", "error", err)
	}
	return false
}

// lacks waits for a quiet moment and tells whether another slot is to be made.
func (s *slots) lacks(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(settle):
	}
	s.mu.Lock()
	lacks := !s.paused && len(s.claimed) == 0 && len(s.ready) < s.want
	s.mu.Unlock()
	return lacks && !s.b.connecting() && s.usable()
}

// resume lets slots be made.
func (s *slots) resume() {
	s.mu.Lock()
	s.paused = false
	s.mu.Unlock()
	s.fill()
}

// stop ends all slots and lets none be made until resume, which is returned if
// some could be made before.
func (s *slots) stop() (resume func(), err error) {
	s.mu.Lock()
	resume = s.resume
	if s.paused {
		resume = func() {}
	}
	s.paused = true
	for s.filling {
		s.filled.Wait()
	}
	s.mu.Unlock()
	return resume, s.drop()
}

// drop ends all slots that are ready.
func (s *slots) drop() error {
	s.mu.Lock()
	all := s.ready
	s.ready = nil
	s.mu.Unlock()
	var errs []error
	for _, c := range all {
		errs = append(errs, s.end(c))
	}
	return errors.Join(errs...)
}

// links tells which ports of the bridge are those of slots.
func (s *slots) links() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	links := map[string]bool{}
	for _, c := range s.ready {
		links[c.link] = true
	}
	for _, c := range s.claimed {
		links[c.link] = true
	}
	return links
}

// newSlot makes a slot.
func (b *builtin) newSlot() (_ *slot, err error) {
	if err := b.prepare(); err != nil {
		return nil, err
	}
	b.mu.Lock()
	ips, err := b.pool.Get()
	b.mu.Unlock()
	if err != nil {
		return nil, err
	}
	s := &slot{link: newLinkName(), ips: ips}
	defer func() {
		if err != nil {
			b.mu.Lock()
			b.pool.Put(ips)
			b.mu.Unlock()
			if s.ns != nil {
				s.ns.Close()
			}
		}
	}()
	if s.ns, err = sys.NewNetFile(); err != nil {
		return nil, err
	}
	port := bridge.Port{Name: s.link, Alias: "ready for a pod", Addrs: ips}
	if err := b.bridge.Attach(port, sys.FilePath(s.ns)); err != nil {
		return nil, fmt.Errorf("make a network ready: %w", err)
	}
	return s, nil
}
