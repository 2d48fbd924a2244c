package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"podstead/image/internal/layer"
)

// Problem is a damage that Check found.
type Problem struct {
	Image    string // ID
	What     string
	Repaired bool
}

// Check reads all that the store has: it compares every blob with its digest,
// and every layer with what its blob unpacks to. With repair, a damaged layer
// is replaced from its blob unless somebody holds it, and a damaged blob is
// removed, so that the next pull of the image fetches it. It takes as long as
// unpacking everything, and as much room as the largest image.
func (s *Store) Check(ctx context.Context, repair bool) ([]Problem, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	c := &check{s: s, repair: repair, seen: map[string]bool{}}
	for _, img := range s.List() {
		s.mu.Lock()
		e := s.images[img.ID]
		s.mu.Unlock()
		if e == nil {
			continue // removed meanwhile
		}
		s.pin(e.files())
		err := c.image(ctx, e)
		s.unpin(e.files())
		if err != nil {
			return c.found, fmt.Errorf("check image %s: %w", e.ID, err)
		}
	}
	return c.found, nil
}

type check struct {
	s      *Store
	repair bool
	seen   map[string]bool // files that were looked at
	found  []Problem
}

func (c *check) report(e *entry, repaired bool, format string, args ...any) {
	p := Problem{e.ID, fmt.Sprintf(format, args...), repaired}
	c.s.log.Warn("image is damaged", "image", p.Image, "what", p.What, "repaired", p.Repaired)
	c.found = append(c.found, p)
}

func (c *check) image(ctx context.Context, e *entry) error {
	whole := true
	blobs := []blobRecord{e.Manifest, e.Config}
	layers := false // not yet looked at
	for _, l := range e.Layers {
		blobs = append(blobs, l.Blob)
		layers = layers || !c.seen[layerPath(l.Chain)]
	}
	for _, b := range blobs {
		ok, err := c.blob(ctx, e, b)
		if err != nil {
			return err
		}
		whole = whole && ok
	}
	if !whole || !layers {
		return nil
	}
	return c.layers(ctx, e)
}

func (c *check) blob(ctx context.Context, e *entry, b blobRecord) (ok bool, err error) {
	rel := blobPath(b.Digest)
	if ok, seen := c.seen[rel]; seen {
		return ok, nil
	}
	f, err := os.Open(c.s.path(rel))
	if err == nil {
		defer f.Close()
		v := digest.Digest(b.Digest).Verifier()
		_, err = io.Copy(v, contextReader{ctx, f})
		ok = err == nil && v.Verified()
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	c.seen[rel] = ok
	if ok {
		return true, nil
	}
	// Without manifest and configuration the image would be lost.
	removable := b != e.Manifest && b != e.Config
	if c.repair && removable {
		removeErr := os.Remove(c.s.path(rel))
		if removeErr != nil && !errors.Is(removeErr, os.ErrNotExist) {
			return false, removeErr
		}
	}
	if err == nil {
		err = errors.New("digest is wrong")
	}
	c.report(e, false, "blob %s: %v", b.Digest, err)
	return false, nil
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// layers unpacks all layers of an image once more and compares.
func (c *check) layers(ctx context.Context, e *entry) error {
	a, err := c.s.storedAssembly(e)
	if err != nil {
		return err
	}
	a.fresh = true
	defer c.s.letGo(a)
	if err := c.s.provideLayers(ctx, a); err != nil {
		return err
	}
	if err := c.s.fixLayers(a); err != nil {
		return err
	}
	synced := false
	for _, l := range a.layers {
		if c.seen[layerPath(l.rec.Chain)] {
			continue
		}
		c.seen[layerPath(l.rec.Chain)] = true
		what, err := c.compare(ctx, l)
		if err != nil {
			return err
		}
		if what == "" {
			continue
		}
		repaired := false
		if c.repair {
			if !synced {
				if err := syncFilesystem(c.s.cfg.Dir); err != nil {
					return err
				}
				synced = true
			}
			if repaired, err = c.replace(l); err != nil {
				return err
			}
		}
		c.report(e, repaired, "layer %s: %s", l.rec.Chain, what)
	}
	return nil
}

func (c *check) compare(ctx context.Context, l *assembledLayer) (string, error) {
	got, err := os.Open(c.s.path(layerPath(l.rec.Chain) + "/fs"))
	if errors.Is(err, os.ErrNotExist) {
		return "missing", nil
	}
	if err != nil {
		return "", err
	}
	defer got.Close()
	return layer.Compare(ctx, l.work.root, got)
}

// replace puts the fresh layer in the place of the damaged one, unless a
// container may be running from that.
func (c *check) replace(l *assembledLayer) (bool, error) {
	s := c.s
	s.commit.Lock()
	defer s.commit.Unlock()
	s.mu.Lock()
	for _, h := range s.holds {
		if slices.ContainsFunc(h.Layers, func(x layerRecord) bool { return x.Chain == l.rec.Chain }) {
			s.mu.Unlock()
			return false, nil
		}
	}
	s.mu.Unlock()
	to := s.path(layerPath(l.rec.Chain))
	err := unix.Renameat2(unix.AT_FDCWD, l.work.dir, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOENT) {
		err = os.Rename(l.work.dir, to)
	}
	return err == nil, err // the damaged one is in staging now, and goes with the work
}

// Pin keeps an image from being collected by the agent, or no longer. It does
// not keep it from Remove.
func (s *Store) Pin(name string, pinned bool) error {
	s.commit.Lock()
	defer s.commit.Unlock()
	s.mu.Lock()
	e, err := s.lookup(name)
	s.mu.Unlock()
	if err != nil || e.Pinned == pinned {
		return err
	}
	r := e.record.clone()
	r.Pinned = pinned
	return s.replaceRecord(&entry{r, e.config})
}
