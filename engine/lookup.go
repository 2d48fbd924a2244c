package engine

import (
	"crypto/rand"
	"encoding/hex"
	"strings"

	"google.golang.org/grpc/codes"

	"podstead/cri"
)

// newID makes the ID of a sandbox or container.
func newID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// find returns the object that id or an unambiguous beginning of it names; ok is
// false if there is none.
func find[T any](objects map[string]T, kind, id string) (o T, ok bool, err error) {
	if o, ok := objects[id]; ok {
		return o, true, nil
	}
	if id == "" {
		return o, false, cri.Errorf(codes.InvalidArgument, "the ID of the %s is missing", kind)
	}
	for full, candidate := range objects {
		if !strings.HasPrefix(full, id) {
			continue
		}
		if ok {
			return o, false, cri.Errorf(codes.InvalidArgument, "%s %q is ambiguous", kind, id)
		}
		o, ok = candidate, true
	}
	return o, ok, nil
}

// sandbox finds a sandbox, nil if there is none.
func (e *Engine) sandbox(id string) (*sandbox, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s, _, err := find(e.sandboxes, "pod sandbox", id)
	return s, err
}

// container finds a container, nil if there is none.
func (e *Engine) container(id string) (*container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, _, err := find(e.containers, "container", id)
	return c, err
}

// mustSandbox and mustContainer make a missing object an error.
func (e *Engine) mustSandbox(id string) (*sandbox, error) {
	s, err := e.sandbox(id)
	if s == nil && err == nil {
		err = cri.Errorf(codes.NotFound, "pod sandbox %q does not exist", id)
	}
	return s, err
}

func (e *Engine) mustContainer(id string) (*container, error) {
	c, err := e.container(id)
	if c == nil && err == nil {
		err = cri.Errorf(codes.NotFound, "container %q does not exist", id)
	}
	return c, err
}

// allSandboxes and allContainers copy the lists, so that no lock is held while
// they are worked through.
func (e *Engine) allSandboxes() []*sandbox {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]*sandbox, 0, len(e.sandboxes))
	for _, s := range e.sandboxes {
		all = append(all, s)
	}
	return all
}

func (e *Engine) allContainers() []*container {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]*container, 0, len(e.containers))
	for _, c := range e.containers {
		all = append(all, c)
	}
	return all
}

// containersOf returns the containers of a sandbox.
func (e *Engine) containersOf(sandboxID string) []*container {
	e.mu.Lock()
	defer e.mu.Unlock()
	var own []*container
	for _, c := range e.containers {
		if c.sandboxID == sandboxID {
			own = append(own, c)
		}
	}
	return own
}
