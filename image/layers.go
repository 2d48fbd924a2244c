package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"podstead/image/internal/layer"
)

// layerWork is one layer being fetched and unpacked into staging, for all the
// images that need it at the time. It goes on as long as one of them does.
type layerWork struct {
	rec        layerRecord // what it is to become
	starter    *assembly
	dir        string // staging; dir/fs is the layer
	verifyOnly bool   // the layer is in place, unpacked from another blob
	cancel     context.CancelFunc
	refs       int // guarded by Store.mu

	blobReady chan struct{} // closed when blob is set, or will not be
	blob      *blob
	unpacked  atomic.Int64

	done chan struct{} // closed at the end; what follows is set then
	res  layer.Result
	root *os.File // dir/fs, which may be renamed meanwhile
	err  error

	fix    sync.Once // implicit directories, once for all who share the layer
	fixErr error
}

// startLayer joins or starts the work for a layer.
func (s *Store) startLayer(a *assembly, l *assembledLayer) error {
	dir := s.stagingPath("layer")
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.layers[l.key]; w != nil && l.key != "" {
		w.refs++
		l.work = w
		return nil
	}
	if s.closed {
		return context.Canceled
	}
	ctx, cancel := context.WithCancel(s.ctx)
	w := &layerWork{rec: l.rec, starter: a, dir: dir, cancel: cancel, refs: 1,
		blobReady: make(chan struct{}), done: make(chan struct{})}
	if have, ok := s.placed(l.rec.Chain); ok && !a.fresh {
		w.verifyOnly = true
		w.res = layer.Result{Bytes: have.Bytes, Inodes: have.Inodes, OpaqueRoot: have.OpaqueRoot}
	}
	l.work = w
	key := l.key
	if key != "" {
		s.layers[key] = w
	}
	s.work.Go(func() {
		defer cancel()
		w.err = s.runLayer(ctx, w, a)
		if w.err != nil && key != "" {
			s.mu.Lock()
			if s.layers[key] == w {
				delete(s.layers, key)
			}
			s.mu.Unlock()
		}
		close(w.done)
	})
	return nil
}

// placed finds a layer that is in place for an image or a holder; s.mu is held.
func (s *Store) placed(chain string) (layerRecord, bool) {
	if s.lost[chain] {
		return layerRecord{}, false
	}
	for _, e := range s.images {
		for _, l := range e.Layers {
			if l.Chain == chain {
				return l, true
			}
		}
	}
	for _, h := range s.holds {
		for _, l := range h.Layers {
			if l.Chain == chain {
				return l, true
			}
		}
	}
	return layerRecord{}, false
}

// releaseLayer lets go of a layer's work; with the last one goes what is still
// in staging.
func (s *Store) releaseLayer(key string, w *layerWork) {
	if w == nil {
		return
	}
	s.mu.Lock()
	w.refs--
	last := w.refs == 0
	if last && s.layers[key] == w {
		delete(s.layers, key)
	}
	s.mu.Unlock()
	if !last {
		return
	}
	w.cancel()
	<-w.done
	if w.blob != nil {
		s.releaseBlob(blobKey(key, w), w.blob)
	}
	if w.root != nil {
		w.root.Close()
	}
	if err := layer.RemoveAll(context.Background(), w.dir); err != nil {
		s.log.Warn("staging is not removed", "path", w.dir, "err", err)
	}
}

// blobKey is by what blobs are shared: also between layers that differ only in
// what lies below them.
func blobKey(layerKey string, w *layerWork) string {
	if layerKey == "" {
		return ""
	}
	return w.rec.Blob.Digest
}

func (s *Store) runLayer(ctx context.Context, w *layerWork, a *assembly) error {
	ready := sync.OnceFunc(func() { close(w.blobReady) })
	defer ready()
	slots := s.fetching.Load().slots
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	key := w.rec.Blob.Digest
	if a.private {
		key = ""
	}
	d := ocispec.Descriptor{MediaType: w.rec.Blob.MediaType, Digest: digest.Digest(w.rec.Blob.Digest), Size: w.rec.Blob.Size}
	b, err := s.startBlob(key, d, a.fetcher)
	if err != nil {
		return err
	}
	w.blob = b
	ready()
	r := b.open(ctx)
	var diffID digest.Digest
	if w.verifyOnly {
		diffID, err = s.unpacker.DiffID(ctx, r)
	} else {
		diffID, err = s.unpack(ctx, w, r)
	}
	if err != nil {
		return b.blame(ctx, err)
	}
	if string(diffID) != w.rec.DiffID {
		return &reasonError{ReasonDigestMismatch, fmt.Errorf("unpacked content is %s, the config says %s", diffID, w.rec.DiffID)}
	}
	return nil
}

// blame finds who is at fault when a blob was not unpacked. If the bytes made no
// sense it waits for the blob's end: with the wrong digest it was the registry,
// not the image, that was wrong, and another registry may do better.
func (b *blob) blame(ctx context.Context, err error) error {
	var format *layer.FormatError
	if errors.As(err, &format) && format.Entry == "" {
		select {
		case <-b.done:
		case <-ctx.Done():
		}
	}
	if _, _, blobErr, _ := b.state(); blobErr != nil {
		return blobErr
	}
	return err
}

func (s *Store) unpack(ctx context.Context, w *layerWork, r io.Reader) (digest.Digest, error) {
	if err := os.Mkdir(w.dir, 0o700); err != nil {
		return "", err
	}
	fs := w.dir + "/fs"
	if err := os.Mkdir(fs, 0o755); err != nil {
		return "", err
	}
	res, err := s.unpacker.Unpack(ctx, r, fs, func(n int64) { w.unpacked.Add(n) })
	if err != nil {
		return "", err
	}
	for name, n := range res.Dropped {
		s.log.Warn("image attribute not applied", "layer", w.rec.Blob.Digest, "xattr", name, "files", n)
	}
	w.res = res
	if w.root, err = os.Open(fs); err != nil {
		return "", err
	}
	return res.DiffID, nil
}

// fixLayers gives directories that a layer has without an entry of their own
// the attributes that they have in the layers below. It runs when all of an
// image's layers are there, so that unpacking needs no order.
func (s *Store) fixLayers(a *assembly) error {
	var roots []*os.File // top first, down to an opaque one
	for i, l := range a.layers {
		root := (*os.File)(nil)
		if l.work != nil {
			root = l.work.root
		}
		if root == nil { // in place
			f, err := os.Open(s.path(layerPath(l.rec.Chain) + "/fs"))
			if err != nil {
				return err
			}
			defer f.Close()
			root = f
		}
		if w := l.work; w != nil && !w.verifyOnly {
			w.fix.Do(func() {
				w.fixErr = layer.FixImplicit(root, roots, w.res.Implicit)
			})
			if w.fixErr != nil {
				return fmt.Errorf("layer %d (%s): %w", i+1, l.rec.Blob.Digest, w.fixErr)
			}
		}
		if l.rec.OpaqueRoot {
			roots = nil
		}
		roots = append([]*os.File{root}, roots...)
	}
	return nil
}
