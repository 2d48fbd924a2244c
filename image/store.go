package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"podstead/image/internal/layer"
)

// Store holds images. Safe for concurrent use; one process at a time may have a
// directory open (a lock file sees to that).
type Store struct {
	cfg      Config
	log      *slog.Logger
	unpacker *layer.Unpacker
	lock     *os.File

	ctx      context.Context // ends with Close: all work under way hangs on it
	cancel   context.CancelFunc
	work     sync.WaitGroup
	fetching atomic.Pointer[fetching]

	// commit serialises what changes images/, layers/ and blobs/ for good.
	// It is taken before mu and, unlike it, held across I/O.
	commit sync.Mutex
	// holding serialises the files in holds/, which are quick to write.
	holding sync.Mutex

	mu     sync.Mutex // guards what follows
	closed bool
	images map[string]*entry // by ID
	names  map[string]string // tag or digest reference → ID
	holds  map[string]*hold  // by holder
	pins   map[string]int    // paths that work under way relies on
	blobs  map[string]*blob
	layers map[string]*layerWork
	pulls  map[string]*pull
	lost   map[string]bool // chains that a holder needs and that are not there
	staged uint64          // names staging files
}

// entry is an image in memory; it is replaced, never changed.
type entry struct {
	*record
	config ocispec.Image
}

// Open opens or makes a store. A bad record is set aside and logged, never fatal.
func Open(cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		cfg: cfg, log: cfg.Log,
		unpacker: layer.NewUnpacker(layer.Limits{Entries: cfg.MaxEntries, Bytes: cfg.MaxBytes}),
		images:   map[string]*entry{}, names: map[string]string{}, holds: map[string]*hold{},
		pins: map[string]int{}, blobs: map[string]*blob{}, layers: map[string]*layerWork{}, pulls: map[string]*pull{},
		lost: map[string]bool{},
	}
	s.SetFetching(Fetching{CertsDir: cfg.CertsDir, ParallelLayers: cfg.ParallelLayers, StallTimeout: cfg.StallTimeout})
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.open(); err != nil {
		s.cancel()
		if s.lock != nil {
			s.lock.Close()
		}
		return nil, fmt.Errorf("open image store %s: %w", cfg.Dir, err)
	}
	return s, nil
}

// Fetching is how images are fetched; see the fields of Config.
type Fetching struct {
	CertsDir       string
	ParallelLayers int
	StallTimeout   time.Duration
}

type fetching struct {
	Fetching
	slots chan struct{} // one per layer being fetched and unpacked
}

// SetFetching changes how pulls that begin from now on fetch images, and how many
// layers at a time those that begin later may.
func (s *Store) SetFetching(f Fetching) {
	if f.ParallelLayers <= 0 {
		f.ParallelLayers = 3
	}
	if f.StallTimeout <= 0 {
		f.StallTimeout = time.Minute
	}
	next := &fetching{Fetching: f}
	if old := s.fetching.Load(); old != nil && cap(old.slots) == f.ParallelLayers {
		next.slots = old.slots
	} else {
		next.slots = make(chan struct{}, f.ParallelLayers)
	}
	s.fetching.Store(next)
}

func (s *Store) path(rel string) string { return filepath.Join(s.cfg.Dir, rel) }

func (s *Store) open() error {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return err
	}
	// Layers hold set-uid programs and other people's files: nobody but us may
	// even pass through (CVE-2021-41103).
	if err := os.Chmod(s.cfg.Dir, 0o700); err != nil {
		return err
	}
	if err := s.takeLock(); err != nil {
		return err
	}
	for _, d := range []string{"images", "layers", "blobs/sha256", "holds", "staging", "quarantine"} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return err
		}
	}
	if err := s.emptyStaging(); err != nil {
		return err
	}
	if err := s.loadRecords(); err != nil {
		return err
	}
	return s.collectAtOpen()
}

// lockPatience is how long children of a process that was killed may take to
// close what they have of it: they were forked, and have not got to it yet.
const lockPatience = 2 * time.Second

func (s *Store) takeLock() error {
	f, err := os.OpenFile(s.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			s.lock = f
			return nil
		case err != unix.EWOULDBLOCK && err != unix.EINTR:
			f.Close()
			return fmt.Errorf("lock: %w", err)
		case time.Now().After(deadline):
			f.Close()
			return errors.New("another process has it open")
		}
	}
}

func (s *Store) emptyStaging() error {
	left, err := os.ReadDir(s.path("staging"))
	if err != nil {
		return err
	}
	if len(left) > 0 {
		s.log.Info("removing unfinished image work", "items", len(left))
	}
	for _, e := range left {
		if err := layer.RemoveAll(s.ctx, s.path("staging/"+e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// loadRecords reads images and holds. What cannot be read goes to quarantine/;
// layers that are missing are unpacked again.
func (s *Store) loadRecords() error {
	var entries, damaged []*entry
	err := s.eachRecord("images", func(rel string) error {
		e, whole, err := s.loadImage(rel)
		if err != nil {
			return err
		}
		if whole {
			entries = append(entries, e)
		} else {
			damaged = append(damaged, e)
		}
		return nil
	})
	if err != nil {
		return err
	}
	// A crash can leave a name with two images: the later pull has it.
	slices.SortFunc(entries, func(a, b *entry) int { return a.Pulled.Compare(b.Pulled) })
	for _, e := range entries {
		s.index(e)
	}
	err = s.eachRecord("holds", func(rel string) error {
		var h hold
		if err := readRecord(s.path(rel), &h); err != nil {
			return err
		}
		if holdPath(h.Holder) != rel {
			return fmt.Errorf("record is of holder %.100q", h.Holder)
		}
		s.holds[h.Holder] = &h
		for _, l := range h.Layers {
			if !s.exists(layerPath(l.Chain)) {
				s.lost[l.Chain] = true
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, e := range damaged {
		if err := s.repair(e); err != nil {
			s.quarantine(imagePath(e.ID), err)
		}
	}
	return nil
}

// eachRecord reads the records of a directory; bad ones are set aside.
func (s *Store) eachRecord(dir string, read func(rel string) error) error {
	files, err := os.ReadDir(s.path(dir))
	if err != nil {
		return err
	}
	for _, f := range files {
		rel := dir + "/" + f.Name()
		if isTemporary(f.Name()) {
			os.Remove(s.path(rel))
		} else if err := read(rel); err != nil {
			s.quarantine(rel, err)
		}
	}
	return nil
}

func (s *Store) exists(rel string) bool {
	_, err := os.Lstat(s.path(rel))
	return err == nil
}

// isTemporary tells what an interrupted sys.WriteFileAtomic leaves.
func isTemporary(name string) bool { return strings.HasPrefix(name, ".tmp-") }

// loadImage reads one record. It is not whole if layers are missing. The blob
// of a layer may be missing: that image runs, though it cannot be saved.
func (s *Store) loadImage(rel string) (e *entry, whole bool, err error) {
	var r record
	if err := readRecord(s.path(rel), &r); err != nil {
		return nil, false, err
	}
	if imagePath(r.ID) != rel || r.ID != r.Config.Digest {
		return nil, false, fmt.Errorf("record is of image %.100q", r.ID)
	}
	b, err := s.readSmallBlob(r.Config)
	if err != nil {
		return nil, false, err
	}
	config, err := parseConfig(b)
	if err != nil {
		return nil, false, err
	}
	whole = true
	for _, l := range r.Layers {
		whole = whole && s.exists(layerPath(l.Chain)+"/fs")
	}
	return &entry{&r, config}, whole, nil
}

// repair unpacks the missing layers of an image again, from their blobs. An
// image that came on a stick may not be had a second time.
func (s *Store) repair(e *entry) error {
	s.log.Warn("image lacks layers, which are unpacked again", "image", e.ID, "names", e.Tags)
	a, err := s.storedAssembly(e)
	if err != nil {
		return err
	}
	a.tags, a.digests, a.pinned, a.pulled = e.Tags, e.Digests, e.Pinned, e.Pulled
	_, err = s.assemble(s.ctx, a)
	return err
}

// storedAssembly is the image once more, from its blobs in the store.
func (s *Store) storedAssembly(e *entry) (*assembly, error) {
	a := &assembly{fetcher: stored{s}, private: true, manifest: e.Manifest}
	var err error
	if a.rawDoc, err = s.readSmallBlob(e.Manifest); err != nil {
		return nil, err
	}
	if a.rawConf, err = s.readSmallBlob(e.Config); err != nil {
		return nil, err
	}
	if a.doc, err = parseDocument(a.rawDoc, e.Manifest.MediaType); err != nil {
		return nil, err
	}
	if a.config, err = checkConfig(a.rawConf, len(a.doc.Layers)); err != nil {
		return nil, err
	}
	a.plan()
	return a, nil
}

// stored is the store itself as the fetcher of an image's blobs.
type stored struct{ s *Store }

func (f stored) fetch(_ context.Context, d ocispec.Descriptor, _ io.Writer, _ func()) error {
	return fmt.Errorf("blob %s is not in the store", d.Digest)
}

func (f stored) local(d ocispec.Descriptor) string {
	if rel := blobPath(d.Digest.String()); f.s.exists(rel) {
		return f.s.path(rel)
	}
	return ""
}

// index makes an image known by its names, and takes them from those that had
// them; s.mu is held, or nobody else knows the store yet.
func (s *Store) index(e *entry) {
	if old := s.images[e.ID]; old != nil {
		for _, n := range slices.Concat(old.Tags, old.Digests) {
			delete(s.names, n)
		}
	}
	s.images[e.ID] = e
	for _, n := range slices.Concat(e.Tags, e.Digests) {
		if id, ok := s.names[n]; ok && id != e.ID {
			other := s.images[id].record.clone()
			other.Tags = without(other.Tags, n)
			other.Digests = without(other.Digests, n)
			s.images[id] = &entry{other, s.images[id].config}
		}
		s.names[n] = e.ID
	}
}

func without(list []string, s string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(x string) bool { return x == s })
}

func (s *Store) quarantine(rel string, why error) {
	to := "quarantine/" + time.Now().UTC().Format("20060102T150405.000") + "-" + filepath.Base(rel)
	err := os.Rename(s.path(rel), s.path(to))
	s.log.Error("image record set aside", "record", rel, "to", to, "err", errors.Join(why, err))
}

// readSmallBlob reads a manifest or configuration and checks its digest again.
func (s *Store) readSmallBlob(b blobRecord) ([]byte, error) {
	if b.Size > maxConfig {
		return nil, fmt.Errorf("blob %s: %d bytes", b.Digest, b.Size)
	}
	data, err := os.ReadFile(s.path(blobPath(b.Digest)))
	if err != nil {
		return nil, err
	}
	if digestOf(data) != b.Digest {
		return nil, fmt.Errorf("blob %s on disk is damaged", b.Digest)
	}
	return data, nil
}

// Close cancels what is under way, removes its staging and waits for that.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.work.Wait()
	return s.lock.Close()
}

// Get finds an image by tag, tag-less name, digest reference, full or
// unambiguous short ID. ErrNotFound if there is none.
func (s *Store) Get(name string) (Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.lookup(name)
	if err != nil {
		return Image{}, err
	}
	return e.image(), nil
}

// List returns all images, newest first.
func (s *Store) List() []Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Image, 0, len(s.images))
	for _, e := range s.images {
		list = append(list, e.image())
	}
	slices.SortFunc(list, func(a, b Image) int {
		if c := b.Pulled.Compare(a.Pulled); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list
}

// image is the entry as callers see it; they own it but for the
// configuration's insides, which they must not change.
func (e *entry) image() Image {
	return Image{
		ID: e.ID, RepoTags: slices.Clone(e.Tags), RepoDigests: slices.Clone(e.Digests),
		Size: e.size(), Pinned: e.Pinned, Pulled: e.Pulled, Config: e.config,
	}
}

// Usage returns the bytes and inodes that the store takes on its filesystem,
// from its records and not by walking trees.
func (s *Store) Usage() (bytes, inodes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := map[string]bool{}
	blob := func(b blobRecord) {
		if p := blobPath(b.Digest); !seen[p] {
			seen[p] = true
			bytes += (uint64(b.Size) + 4095) &^ 4095
			inodes++
		}
	}
	layers := func(ls []layerRecord) {
		for _, l := range ls {
			if p := layerPath(l.Chain); !seen[p] {
				seen[p] = true
				bytes += l.Bytes + 4096
				inodes += l.Inodes + 1
			}
		}
	}
	for _, e := range s.images {
		blob(e.Manifest)
		blob(e.Config)
		for _, l := range e.Layers {
			blob(l.Blob)
		}
		layers(e.Layers)
	}
	for _, h := range s.holds {
		layers(h.Layers)
	}
	return bytes, inodes
}

// parseConfig reads an image configuration, as much as the project uses of it.
func parseConfig(b []byte) (ocispec.Image, error) {
	var c ocispec.Image
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("image configuration: %w", err)
	}
	c.History = nil // long, and nobody reads it
	return c, nil
}
