package engine

import (
	"context"
	"strings"
	"sync"
)

// A pod's cgroup is made by whoever needs it first: the kubelet or the agent,
// who then remove it, too, or the first of the pod's sandboxes. While one
// attempt of a pod is being taken down the next is made in the same group, so
// its owner, who removes it, is settled under a lock for each group.

// makePodCgroup makes the group that holds the pod's containers.
func (e *Engine) makePodCgroup(ctx context.Context, s *sandbox) error {
	rec := s.record()
	free, err := e.podCgroups.take(ctx, rec.CgroupParent)
	if err != nil {
		return err
	}
	defer free()
	g := e.cfg.Cgroups.Group(rec.CgroupParent)
	if !g.Exists() {
		if err := e.changeSandbox(s, func(r *sandboxRecord) { r.OwnCgroup = true }); err != nil {
			return err
		}
	}
	return g.Create()
}

// releasePodCgroup removes the pod's group if it is the sandbox's own and no
// other sandbox needs it.
func (e *Engine) releasePodCgroup(ctx context.Context, r *sandboxRecord) error {
	free, err := e.podCgroups.take(ctx, r.CgroupParent)
	if err != nil {
		return err
	}
	defer free()
	own := r.OwnCgroup
	e.mu.Lock()
	self := e.sandboxes[r.ID]
	e.mu.Unlock()
	if self != nil {
		self.leftCgroup = true
		own = self.record().OwnCgroup // it may have come to own it meanwhile
	}
	if !own {
		return nil
	}
	if err := e.passOnCgroup(ctx, r); err != nil || self == nil {
		return err
	}
	return e.changeEndingSandbox(self, func(r *sandboxRecord) { r.OwnCgroup = false })
}

// passOnCgroup gives a sandbox's group to another that is in it, or removes it.
func (e *Engine) passOnCgroup(ctx context.Context, r *sandboxRecord) error {
	for _, s := range e.allSandboxes() {
		other := s.record()
		switch {
		case s.id == r.ID || other.Phase == sandboxStopped:
		case other.CgroupParent == r.CgroupParent && !s.leftCgroup:
			return e.changeSandbox(s, func(r *sandboxRecord) { r.OwnCgroup = true })
		case strings.HasPrefix(other.CgroupParent, r.CgroupParent+"/"):
			return nil
		}
	}
	return e.removeCgroup(ctx, r.CgroupParent)
}

// turns are locks by name. The zero value is ready.
type turns struct {
	mu     sync.Mutex
	byName map[string]*namedTurn
}

type namedTurn struct {
	turn
	users int
}

// take waits for a name's turn. free must be called.
func (t *turns) take(ctx context.Context, name string) (free func(), err error) {
	t.mu.Lock()
	if t.byName == nil {
		t.byName = map[string]*namedTurn{}
	}
	n := t.byName[name]
	if n == nil {
		n = &namedTurn{turn: newTurn()}
		t.byName[name] = n
	}
	n.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if n.users--; n.users == 0 {
			delete(t.byName, name)
		}
	}
	if err := n.turn.take(ctx); err != nil {
		leave()
		return nil, err
	}
	return func() { n.give(); leave() }, nil
}
