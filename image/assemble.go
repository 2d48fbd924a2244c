package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.opentelemetry.io/otel/attribute"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"podstead/image/internal/layer"
	"podstead/sys"
)

// assembly is an image on its way into the store: its manifest is known and
// checked, its blobs come from a fetcher.
type assembly struct {
	fetcher  fetcher
	private  bool // share no work with others: an archive's blobs are at hand
	fresh    bool // nor what is in place
	manifest blobRecord
	doc      *document
	rawDoc   []byte
	config   ocispec.Image
	rawConf  []byte
	tags     []string
	digests  []string
	pinned   bool
	pulled   time.Time // when it is not now
	progress *pull     // may be nil

	layers []*assembledLayer
	placed []string // what was put in place for it
}

// assembledLayer is one layer of an assembly, and what it holds for it.
type assembledLayer struct {
	rec  layerRecord
	work *layerWork // nil: it is in place, blob and all
	key  string     // by which others join the work
}

// plan lists the layers of the manifest, lowest first.
func (a *assembly) plan() {
	chains := chainIDs(a.config.RootFS.DiffIDs)
	a.layers = nil
	for i, l := range a.doc.Layers {
		a.layers = append(a.layers, &assembledLayer{rec: layerRecord{
			Blob:   blobRecord{string(l.Digest), l.MediaType, l.Size},
			DiffID: string(a.config.RootFS.DiffIDs[i]),
			Chain:  string(chains[i]),
		}})
	}
}

// letGo ends what is under way for an assembly, and removes what it has staged.
func (s *Store) letGo(a *assembly) {
	for _, l := range a.layers {
		s.releaseLayer(l.key, l.work)
	}
}

// assemble fetches and unpacks what is missing and records the image: whole,
// or not at all.
func (s *Store) assemble(ctx context.Context, a *assembly) (img Image, err error) {
	a.plan()
	rec := &record{Manifest: a.manifest, Layers: make([]layerRecord, len(a.layers)),
		Config: blobRecord{digestOf(a.rawConf), a.doc.Config.MediaType, int64(len(a.rawConf))},
		Tags:   a.tags, Digests: a.digests, Pinned: a.pinned}
	rec.ID = rec.Config.Digest
	for i, l := range a.layers {
		rec.Layers[i] = l.rec
	}
	files := rec.files()
	s.pin(files)
	defer func() {
		s.letGo(a)
		s.unpin(files)
		if err != nil {
			err = errors.Join(err, s.collecting(ctx, func() ([]string, error) { return a.placed, nil }))
		}
	}()
	if err := s.provideLayers(ctx, a); err != nil {
		return Image{}, err
	}
	if s.isKnown(rec, a.layers) {
		return s.Get(rec.ID)
	}
	a.progress.setStage("syncing")
	for i, l := range a.layers {
		if l.work != nil {
			l.rec.Bytes, l.rec.Inodes, l.rec.OpaqueRoot = l.work.res.Bytes, l.work.res.Inodes, l.work.res.OpaqueRoot
		}
		rec.Layers[i] = l.rec
	}
	committing, end := span(ctx, "sync and record")
	err = s.commitImage(committing, a, rec)
	end(err)
	if err != nil {
		return Image{}, err
	}
	return s.Get(rec.ID)
}

// isKnown says that the image is there under these names already: nothing is to
// be written. That is most pulls of a tag.
func (s *Store) isKnown(rec *record, layers []*assembledLayer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.images[rec.ID]
	if e == nil || e.Manifest != rec.Manifest || rec.Pinned && !e.Pinned {
		return false
	}
	for _, n := range slices.Concat(rec.Tags, rec.Digests) {
		if s.names[n] != rec.ID {
			return false
		}
	}
	return !slices.ContainsFunc(layers, func(l *assembledLayer) bool { return l.work != nil })
}

func (s *Store) pin(files []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range files {
		s.pins[f]++
	}
}

func (s *Store) unpin(files []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range files {
		if s.pins[f]--; s.pins[f] == 0 {
			delete(s.pins, f)
		}
	}
}

// provideLayers starts all layers and waits for them. The first failure ends
// the waiting; the caller lets go of the rest.
func (s *Store) provideLayers(ctx context.Context, a *assembly) error {
	for _, l := range a.layers {
		if !a.fresh && s.shareLayer(l) {
			continue
		}
		l.key = l.rec.Chain + " " + l.rec.Blob.Digest
		if a.private {
			l.key = ""
		}
		if err := s.startLayer(a, l); err != nil {
			return err
		}
	}
	a.progress.watch(a.layers)
	g, ctx := errgroup.WithContext(ctx)
	for i, l := range a.layers {
		if l.work == nil {
			continue
		}
		g.Go(func() error {
			ctx, end := span(ctx, "layer", attribute.String("podstead.layer.digest", l.rec.Blob.Digest))
			err := s.awaitLayer(ctx, a, i)
			if err == nil {
				end(nil, l.came(a)...)
				return nil
			}
			end(err)
			return fmt.Errorf("layer %d (%s): %w", i+1, l.rec.Blob.Digest, err)
		})
	}
	return g.Wait()
}

// awaitLayer waits for a layer. Work that was joined may fail for reasons of
// the one who started it, as its credentials: it is then tried again on our own.
func (s *Store) awaitLayer(ctx context.Context, a *assembly, i int) error {
	l := a.layers[i]
	const attempts = 4
	for attempt := 1; ; attempt++ {
		select {
		case <-l.work.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		err := l.work.err
		var elsewhere *retryElsewhereError
		if err == nil || attempt == attempts || !(l.work.starter != a || errors.As(err, &elsewhere)) {
			return err
		}
		s.log.Info("image layer is tried again", "layer", l.rec.Blob.Digest, "err", err)
		s.releaseLayer(l.key, l.work)
		l.work = nil
		if err := s.startLayer(a, l); err != nil {
			return err
		}
		a.progress.setWork(i, l.work)
	}
}

// retryElsewhereError says that a blob was bad where it came from, and that
// there is another place to ask.
type retryElsewhereError struct{ err error }

func (e *retryElsewhereError) Error() string { return e.err.Error() }
func (e *retryElsewhereError) Unwrap() error { return e.err }

// shareLayer uses a layer that an image in the store has, if that came from
// the very same blob: that of another compression must be fetched and compared.
func (s *Store) shareLayer(l *assembledLayer) bool {
	if !s.exists(blobPath(l.rec.Blob.Digest)) {
		return false // Check has found it damaged
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.images {
		for _, have := range e.Layers {
			if have.Chain == l.rec.Chain && have.Blob.Digest == l.rec.Blob.Digest {
				mediaType := l.rec.Blob.MediaType
				l.rec = have
				l.rec.Blob.MediaType = mediaType
				return true
			}
		}
	}
	return false
}

// commitImage makes an image durable and known. Nothing that it renames is
// trusted after a crash unless the record, which comes last, says so.
func (s *Store) commitImage(ctx context.Context, a *assembly, rec *record) error {
	dir := s.stagingPath("image")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer layer.RemoveAll(context.WithoutCancel(ctx), dir)
	small := map[string][]byte{rec.Manifest.Digest: a.rawDoc, rec.Config.Digest: a.rawConf}
	for d, b := range small {
		if err := os.WriteFile(dir+"/"+digestHex(d), b, 0o600); err != nil {
			return err
		}
	}
	if err := s.fixLayers(a); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := syncFilesystem(dir); err != nil {
		return err
	}
	return s.collecting(ctx, func() ([]string, error) {
		for d := range small {
			if err := s.place(a, dir+"/"+digestHex(d), blobPath(d)); err != nil {
				return nil, err
			}
		}
		for _, l := range a.layers {
			if l.work == nil {
				continue
			}
			if err := s.place(a, l.work.blob.path, blobPath(l.rec.Blob.Digest)); err != nil {
				return nil, err
			}
			if l.work.verifyOnly {
				continue
			}
			if err := s.place(a, l.work.dir, layerPath(l.rec.Chain)); err != nil {
				return nil, err
			}
			s.mu.Lock()
			delete(s.lost, l.rec.Chain)
			s.mu.Unlock()
		}
		for _, d := range []string{"layers", "blobs/sha256"} {
			if err := sys.SyncDir(s.path(d)); err != nil {
				return nil, err
			}
		}
		return s.recordImage(a, rec)
	})
}

// place renames a staged, synced file or layer to where it belongs, unless it
// is there: then another image has brought it.
func (s *Store) place(a *assembly, from, rel string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, s.path(rel), unix.RENAME_NOREPLACE)
	if err == nil {
		a.placed = append(a.placed, rel)
		return nil
	}
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if errors.Is(err, unix.ENOENT) {
		// Placed from here by an image that shared the work.
		if _, statErr := os.Lstat(s.path(rel)); statErr == nil {
			return nil
		}
	}
	return fmt.Errorf("rename to %s: %w", rel, err)
}

// recordImage merges the image with what the store has of the same ID, and
// takes its names from other images. It returns files that may now be unused.
// s.commit is held.
func (s *Store) recordImage(a *assembly, rec *record) ([]string, error) {
	var unused []string
	s.mu.Lock()
	old := s.images[rec.ID]
	var losers []string
	for _, n := range slices.Concat(rec.Tags, rec.Digests) {
		if id, ok := s.names[n]; ok && id != rec.ID {
			losers = append(losers, id)
		}
	}
	s.mu.Unlock()
	if old != nil {
		rec.Tags = union(rec.Tags, old.Tags)
		rec.Digests = union(rec.Digests, old.Digests)
		rec.Pinned = rec.Pinned || old.Pinned
		unused = old.files()
	}
	if rec.Pulled = a.pulled; rec.Pulled.IsZero() {
		rec.Pulled = time.Now().UTC()
	}
	if err := s.replaceRecord(&entry{rec, a.config}); err != nil {
		return nil, err
	}
	for _, id := range losers {
		s.mu.Lock()
		e := s.images[id]
		s.mu.Unlock()
		if err := writeRecord(s.path(imagePath(id)), e.record, true); err != nil {
			// Not the new image's failure: Open settles it by age.
			s.log.Warn("image keeps a lost name on disk", "image", id, "err", err)
		}
	}
	return unused, nil
}

func union(a, b []string) []string {
	u := slices.Concat(a, b)
	slices.Sort(u)
	return slices.Compact(u)
}

// syncFilesystem makes everything durable that was written to the filesystem
// of path: one call for an image, however many files it has.
func syncFilesystem(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("syncfs %s: %w", path, err)
	}
	return nil
}
