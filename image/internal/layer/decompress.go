package layer

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// NewReader returns the uncompressed bytes of a gzip, zstd or plain stream,
// told apart by their first bytes, as media types are often wrong. Errors of r
// come back as they are; those of the compression are a *FormatError.
func (u *Unpacker) NewReader(r io.Reader) (io.ReadCloser, error) {
	src := &source{r: r}
	br := bufio.NewReaderSize(src, 64<<10)
	head, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	var z io.Reader
	kind, done := "gzip", func() {}
	switch {
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		z, err = gzip.NewReader(br)
	case isZstd(head):
		kind = "zstd"
		var d *zstd.Decoder
		if d, err = u.zstdDecoder(br); err == nil {
			z = d
			done = func() {
				if d.Reset(nil) == nil {
					u.zstd.Put(d)
				}
			}
		}
	default:
		return io.NopCloser(br), nil
	}
	f := &decompressor{z: z, kind: kind, src: src, done: done}
	if err != nil {
		return nil, f.blame(err)
	}
	return f, nil
}

func (u *Unpacker) zstdDecoder(r io.Reader) (*zstd.Decoder, error) {
	if d, ok := u.zstd.Get().(*zstd.Decoder); ok {
		return d, d.Reset(r)
	}
	// One frame at a time in the caller's goroutine, its memory bounded by the
	// window and not by the size that a frame says it has.
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(u.limits.ZstdWindow), zstd.WithDecoderMaxMemory(1<<62))
}

func isZstd(head []byte) bool {
	if len(head) < 4 {
		return false
	}
	magic := binary.LittleEndian.Uint32(head)
	// A frame, or a skippable frame in front of one.
	return magic == 0xfd2fb528 || magic&^0xf == 0x184d2a50
}

// source remembers the error that its reader gave.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

type decompressor struct {
	z    io.Reader
	kind string
	src  *source
	done func()
}

func (d *decompressor) Read(p []byte) (int, error) {
	n, err := d.z.Read(p)
	if err != nil && err != io.EOF {
		err = d.blame(err)
	}
	return n, err
}

func (d *decompressor) Close() error {
	d.done()
	d.done = func() {}
	return nil
}

// blame tells a source that broke off from a stream that is wrong.
func (d *decompressor) blame(err error) error {
	if d.src.err != nil {
		return d.src.err
	}
	return &FormatError{Err: fmt.Errorf("%s: %w", d.kind, err)}
}

const (
	chunkSize  = 128 << 10
	chunkCount = 6
)

type chunk struct {
	buf []byte
	n   int
	err error
}

// pipeline decompresses and digests ahead of the one who reads, each in its
// own goroutine, with a fixed set of buffers between them.
type pipeline struct {
	free, full chan *chunk
	done       chan struct{} // closed by Close: both goroutines end
	ended      chan struct{} // closed when they have
	hash       hash.Hash
	cur        *chunk
	off        int
	err        error
}

func newPipeline(src io.Reader) *pipeline {
	p := &pipeline{
		free:  make(chan *chunk, chunkCount),
		full:  make(chan *chunk, chunkCount),
		done:  make(chan struct{}),
		ended: make(chan struct{}),
		hash:  sha256.New(),
	}
	for range chunkCount {
		p.free <- &chunk{buf: make([]byte, chunkSize)}
	}
	plain := make(chan *chunk, chunkCount)
	go p.fill(src, plain)
	go p.digest(plain)
	return p
}

func (p *pipeline) fill(src io.Reader, out chan<- *chunk) {
	defer close(out)
	for {
		var c *chunk
		select {
		case c = <-p.free:
		case <-p.done:
			return
		}
		for c.n, c.err = 0, nil; c.n < len(c.buf) && c.err == nil; {
			var n int
			n, c.err = src.Read(c.buf[c.n:])
			c.n += n
		}
		out <- c // never blocks: as many slots as chunks
		if c.err != nil {
			return
		}
	}
}

func (p *pipeline) digest(in <-chan *chunk) {
	defer close(p.ended)
	defer close(p.full)
	for c := range in {
		p.hash.Write(c.buf[:c.n])
		p.full <- c
	}
}

func (p *pipeline) Read(b []byte) (int, error) {
	for p.cur == nil || p.off == p.cur.n {
		if p.err != nil {
			return 0, p.err
		}
		if p.cur != nil {
			if p.cur.err != nil {
				p.err = p.cur.err
				continue
			}
			p.free <- p.cur
		}
		c, ok := <-p.full
		if !ok {
			return 0, io.ErrUnexpectedEOF
		}
		p.cur, p.off = c, 0
	}
	n := copy(b, p.cur.buf[p.off:p.cur.n])
	p.off += n
	return n, nil
}

// Close ends the goroutines; the source must not block for ever.
func (p *pipeline) Close() {
	close(p.done)
	for range p.full {
	}
	<-p.ended
}

// sum is valid after Read has returned io.EOF.
func (p *pipeline) sum() digest.Digest { return digest.NewDigest(digest.SHA256, p.hash) }

// DiffID reads a whole layer blob and returns the digest of its uncompressed
// bytes, at most limits.Bytes of them plus the archive's own overhead.
func (u *Unpacker) DiffID(ctx context.Context, r io.Reader) (digest.Digest, error) {
	z, err := u.NewReader(r)
	if err != nil {
		return "", err
	}
	defer z.Close()
	h := sha256.New()
	limit := streamLimit(u.limits)
	n, err := io.Copy(h, io.LimitReader(ctxReader{ctx, z}, limit+1))
	if err != nil {
		return "", err
	}
	if n > limit {
		return "", &FormatError{Err: fmt.Errorf("more than %d bytes", u.limits.Bytes)}
	}
	return digest.NewDigest(digest.SHA256, h), nil
}

// streamLimit is how long a tar stream within limits can be.
func streamLimit(l Limits) int64 { return l.Bytes + l.Entries*(4<<10) + 1<<20 }

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
