package image

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fetcher brings the blobs of one image, from a registry or an archive. fetch
// writes the whole blob to w, in order, and returns nil only if its digest is
// right. It tells retried about each time that it had to start over or resume.
type fetcher interface {
	fetch(ctx context.Context, d ocispec.Descriptor, w io.Writer, retried func()) error
	// local returns the path of a file that is the blob, verified, or "".
	local(d ocispec.Descriptor) string
}

// blob is one blob under way to, or in, a staging file. Everybody who needs it
// shares it and may read it while it grows.
type blob struct {
	desc    ocispec.Descriptor
	path    string   // in staging, until an image is recorded that has it
	file    *os.File // read by all, once written > 0: the path may change
	cancel  context.CancelFunc
	refs    int // guarded by Store.mu
	started time.Time
	retries atomic.Int64
	done    chan struct{} // closed at the end

	mu      sync.Mutex
	written int64
	err     error         // of the end
	ended   bool          // with err
	more    chan struct{} // closed and replaced as the file grows and at the end
}

// startBlob joins the fetching of a blob or starts it. The caller lets go of
// it by releaseBlob. Joins are by key; "" joins nobody.
func (s *Store) startBlob(key string, d ocispec.Descriptor, f fetcher) (*blob, error) {
	path := s.stagingPath("blob")
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.blobs[key]; b != nil && key != "" {
		b.refs++
		return b, nil
	}
	if s.closed {
		return nil, context.Canceled
	}
	ctx, cancel := context.WithCancel(s.ctx)
	b := &blob{desc: d, path: path, cancel: cancel, refs: 1, started: time.Now(),
		done: make(chan struct{}), more: make(chan struct{})}
	if key != "" {
		s.blobs[key] = b
	}
	s.work.Go(func() {
		defer cancel()
		err := b.run(ctx, f)
		if err != nil && key != "" {
			// Who comes now starts anew.
			s.mu.Lock()
			if s.blobs[key] == b {
				delete(s.blobs, key)
			}
			s.mu.Unlock()
		}
		b.end(err)
	})
	return b, nil
}

func (s *Store) releaseBlob(key string, b *blob) {
	s.mu.Lock()
	b.refs--
	last := b.refs == 0
	if last && s.blobs[key] == b {
		delete(s.blobs, key)
	}
	s.mu.Unlock()
	if !last {
		return
	}
	b.cancel()
	<-b.done
	if b.file != nil {
		b.file.Close()
	}
	os.Remove(b.path) // unless it was put in place
}

func (b *blob) run(ctx context.Context, f fetcher) (err error) {
	if local := f.local(b.desc); local != "" {
		if err := os.Link(local, b.path); err != nil {
			return err
		}
		if b.file, err = os.Open(b.path); err != nil {
			return err
		}
		b.grow(b.desc.Size)
		return nil
	}
	if b.file, err = os.OpenFile(b.path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); err != nil {
		return err
	}
	w := &blobWriter{b: b}
	if err := f.fetch(ctx, b.desc, w, func() { b.retries.Add(1) }); err != nil {
		return err
	}
	if w.n != b.desc.Size {
		return fmt.Errorf("blob %s: %d of %d bytes", b.desc.Digest, w.n, b.desc.Size)
	}
	return nil
}

type blobWriter struct {
	b *blob
	n int64
}

func (w *blobWriter) Write(p []byte) (int, error) {
	n, err := w.b.file.Write(p)
	w.n += int64(n)
	w.b.grow(int64(n))
	return n, err
}

func (b *blob) grow(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.written += n
	close(b.more)
	b.more = make(chan struct{})
}

func (b *blob) end(err error) {
	b.mu.Lock()
	b.err, b.ended = err, true
	close(b.more)
	b.mu.Unlock()
	close(b.done)
}

func (b *blob) state() (written int64, ended bool, err error, more <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.written, b.ended, b.err, b.more
}

// open returns a reader that follows the blob as it grows. It says io.EOF only
// when the whole blob is there and its digest was right.
func (b *blob) open(ctx context.Context) io.Reader { return &blobReader{ctx: ctx, b: b} }

type blobReader struct {
	ctx context.Context
	b   *blob
	off int64
}

func (r *blobReader) Read(p []byte) (int, error) {
	for {
		written, ended, err, more := r.b.state()
		if err != nil {
			return 0, err
		}
		if r.off < written {
			n, err := r.b.file.ReadAt(p[:min(int64(len(p)), written-r.off)], r.off)
			r.off += int64(n)
			if err == io.EOF && n > 0 {
				err = nil
			}
			if err == io.EOF {
				err = fmt.Errorf("blob %s: staging file was cut short", r.b.desc.Digest)
			}
			return n, err
		}
		if ended {
			return 0, io.EOF
		}
		select {
		case <-more:
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
}
