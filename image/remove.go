package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"podstead/image/internal/layer"
)

// Remove removes the image of that name with all its tags, and the layers that
// nothing else uses. Layers held by Hold stay until released. A missing image
// is no error.
func (s *Store) Remove(ctx context.Context, name string) error {
	return s.collecting(ctx, func() ([]string, error) {
		s.mu.Lock()
		e, err := s.lookup(name)
		s.mu.Unlock()
		if errors.Is(err, ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return s.forget(e)
	})
}

// forget removes the record of an image and returns the files that may have
// been in use for it alone; s.commit is held.
func (s *Store) forget(e *entry) ([]string, error) {
	if err := os.Remove(s.path(imagePath(e.ID))); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove image %s: %w", e.ID, err)
	}
	s.mu.Lock()
	for _, n := range slices.Concat(e.Tags, e.Digests) {
		if s.names[n] == e.ID {
			delete(s.names, n)
		}
	}
	delete(s.images, e.ID)
	s.mu.Unlock()
	s.log.Info("image removed", "image", e.ID)
	return e.files(), nil
}

// Untag removes one name; the image goes with its last name. The digests of a
// repository go with its last tag.
func (s *Store) Untag(ctx context.Context, ref string) error {
	n, err := parseName(ref)
	if err != nil {
		return err
	}
	return s.collecting(ctx, func() ([]string, error) {
		s.mu.Lock()
		e := s.images[s.names[n.String()]]
		s.mu.Unlock()
		if e == nil {
			return nil, nil
		}
		r := e.record.clone()
		r.Tags, r.Digests = without(r.Tags, n.String()), without(r.Digests, n.String())
		_, isTag := n.(reference.Tagged)
		if isTag && !slices.ContainsFunc(r.Tags, func(t string) bool { return strings.HasPrefix(t, n.Name()+":") }) {
			r.Digests = slices.DeleteFunc(r.Digests, func(d string) bool { return strings.HasPrefix(d, n.Name()+"@") })
		}
		if len(r.Tags)+len(r.Digests) == 0 {
			return s.forget(e)
		}
		return nil, s.replaceRecord(&entry{r, e.config})
	})
}

// replaceRecord writes a record and then makes it known; s.commit is held.
func (s *Store) replaceRecord(e *entry) error {
	if err := writeRecord(s.path(imagePath(e.ID)), e.record, true); err != nil {
		return fmt.Errorf("record image %s: %w", e.ID, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index(e)
	return nil
}

// collecting runs change under s.commit and then removes those of the files
// that it returns which nothing needs any more. They are renamed into staging
// first: after a crash they are gone all the same, nobody meets half a layer,
// and the long work is done without the lock.
func (s *Store) collecting(ctx context.Context, change func() ([]string, error)) error {
	s.commit.Lock()
	files, err := change()
	trash, trashErr := s.trash(files)
	s.commit.Unlock()
	errs := []error{err, trashErr}
	for _, t := range trash {
		if err := layer.RemoveAll(context.WithoutCancel(ctx), t); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// trash moves unused files into staging and returns where; s.commit is held.
func (s *Store) trash(files []string) (trash []string, err error) {
	if len(files) == 0 {
		return nil, nil
	}
	s.mu.Lock()
	used := s.used()
	s.mu.Unlock()
	for _, f := range files {
		if used[f] {
			continue
		}
		used[f] = true // once
		to := s.stagingPath("trash")
		renameErr := os.Rename(s.path(f), to)
		if renameErr == nil {
			trash = append(trash, to)
		} else if !errors.Is(renameErr, os.ErrNotExist) {
			err = errors.Join(err, renameErr)
		}
	}
	return trash, err
}

// used are the files that images, holds and work under way need; s.mu is held.
func (s *Store) used() map[string]bool {
	used := map[string]bool{}
	for _, e := range s.images {
		for _, f := range e.files() {
			used[f] = true
		}
	}
	for _, h := range s.holds {
		for _, l := range h.Layers {
			used[layerPath(l.Chain)] = true
		}
	}
	for f := range s.pins {
		used[f] = true
	}
	return used
}

// collectAtOpen removes layers and blobs that were put in place by an image
// that was never recorded. As long as a bad record lies in quarantine nothing
// is removed: its layers may be all that is left of an image that came on a
// stick.
func (s *Store) collectAtOpen() error {
	bad, err := os.ReadDir(s.path("quarantine"))
	if err != nil {
		return err
	}
	if len(bad) > 0 {
		s.log.Warn("unused image files are kept while quarantine/ has records", "records", len(bad))
		return nil
	}
	var files []string
	for _, dir := range []string{"layers", "blobs/sha256"} {
		es, err := os.ReadDir(s.path(dir))
		if err != nil {
			return err
		}
		for _, e := range es {
			files = append(files, dir+"/"+e.Name())
		}
	}
	return s.collecting(s.ctx, func() ([]string, error) { return files, nil })
}

// Hold returns the layer directories of an image, top first, for an overlay's
// lowerdir, and keeps them until Release(holder), also across a restart of the
// process and a Remove of the image. Holding again what is held returns the
// same. It never waits for a pull or a removal. A hold is not synced: after a
// power cut no container has it mounted.
func (s *Store) Hold(ctx context.Context, id, holder string) (lower []string, err error) {
	s.holding.Lock()
	defer s.holding.Unlock()
	s.mu.Lock()
	e, err := s.lookup(id)
	h := s.holds[holder]
	isNew := h == nil && err == nil
	if isNew {
		// From here on its layers stay. An image that can be looked up has not
		// begun to go.
		h = &hold{Holder: holder, Image: e.ID, Layers: e.Layers}
		s.holds[holder] = h
	}
	s.mu.Unlock()
	switch {
	case isNew:
	case h == nil:
		return nil, fmt.Errorf("hold image: %w", err)
	case h.Image == id || e != nil && h.Image == e.ID:
		return s.lower(h.Layers), nil
	default:
		return nil, fmt.Errorf("hold image %s: %s holds %s already", id, holder, h.Image)
	}
	if err := writeRecord(s.path(holdPath(holder)), h, false); err != nil {
		s.mu.Lock()
		delete(s.holds, holder)
		s.mu.Unlock()
		return nil, fmt.Errorf("hold image %s: %w", e.ID, err)
	}
	return s.lower(h.Layers), nil
}

// lower lists the layers for overlayfs, top first, down to one that hides the
// rest.
func (s *Store) lower(layers []layerRecord) []string {
	var dirs []string
	for i := len(layers) - 1; i >= 0; i-- {
		dirs = append(dirs, s.path(layerPath(layers[i].Chain)+"/fs"))
		if layers[i].OpaqueRoot {
			break
		}
	}
	return dirs
}

// Release ends a hold; an unknown holder is no error.
func (s *Store) Release(ctx context.Context, holder string) error {
	h, exists, err := s.endHold(holder)
	if err != nil || h == nil || exists {
		return err // an image that exists uses all of its layers
	}
	var files []string
	for _, l := range h.Layers {
		files = append(files, layerPath(l.Chain))
	}
	return s.collecting(ctx, func() ([]string, error) { return files, nil })
}

func (s *Store) endHold(holder string) (h *hold, imageExists bool, err error) {
	s.holding.Lock()
	defer s.holding.Unlock()
	s.mu.Lock()
	h = s.holds[holder]
	s.mu.Unlock()
	if h == nil {
		return nil, false, nil
	}
	if err := os.Remove(s.path(holdPath(holder))); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, false, fmt.Errorf("release %s: %w", holder, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.holds, holder)
	return h, s.images[h.Image] != nil, nil
}

// Holders lists the holders, for reconciliation at start.
func (s *Store) Holders() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for h := range s.holds {
		list = append(list, h)
	}
	return list
}

// stagingPath returns a fresh path below staging/.
func (s *Store) stagingPath(kind string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.staged++
	return s.path(fmt.Sprintf("staging/%s-%d", strings.ReplaceAll(kind, "/", "_"), s.staged))
}
