package docker

import (
	"fmt"
	"sync"

	"podstead/engine/internal/store"
)

// states keeps what changes of objects, by ID: in memory, and in a directory
// for the next start.
type states[T any] struct {
	dir *store.Dir[T]

	mu   sync.Mutex
	byID map[string]T
}

// openStates loads what is there; a record that cannot be read is passed to bad.
func openStates[T any](path, kind string, bad func(store.Bad)) (*states[T], error) {
	dir, err := store.Open[T](path, kind)
	if err != nil {
		return nil, err
	}
	s := &states[T]{dir: dir}
	records, _, unreadable, err := dir.Load()
	if err != nil {
		return nil, fmt.Errorf("load records of %ss: %w", kind, err)
	}
	s.byID = records
	for _, b := range unreadable {
		bad(b)
	}
	return s, nil
}

func (s *states[T]) get(id string) (T, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.byID[id]
	return v, ok
}

// change edits what is kept of an object.
func (s *states[T]) change(id string, edit func(*T)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.byID[id]
	edit(&v)
	if err := s.dir.Put(id, v); err != nil {
		return err
	}
	s.byID[id] = v
	return nil
}

// delete forgets an object with all files that are kept of it.
func (s *states[T]) delete(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byID, id)
	return s.dir.Delete(id)
}

// ids are those of all objects that have something kept, bare directories
// included.
func (s *states[T]) ids() ([]string, error) {
	records, bare, _, err := s.dir.Load()
	if err != nil {
		return nil, err
	}
	for id := range records {
		bare = append(bare, id)
	}
	return bare, nil
}
