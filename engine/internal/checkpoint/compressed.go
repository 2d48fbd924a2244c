package checkpoint

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// A compressed archive may grow so many times, and by as much as a small one
// needs. Memory is seldom compressed by more than ten; what grows more is made to
// fill a disk.
const (
	growth   = 100
	growthOf = 64 << 20
)

// maxWindow bounds the memory that zstd may want.
const maxWindow = 128 << 20

// plain returns an archive of size bytes as it was before it was compressed with
// gzip or zstd, if it was, and how many bytes that may be.
func plain(r io.Reader, size int64) (out io.Reader, limit int64, closed func(), err error) {
	b := bufio.NewReader(r)
	magic, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, nil, err
	}
	limit, closed = size*growth+growthOf, func() {}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, 0, nil, fmt.Errorf("gzip: %w: %w", ErrFormat, err)
		}
		out = z
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, 0, nil, fmt.Errorf("zstd: %w: %w", ErrFormat, err)
		}
		out, closed = z, z.Close
	default:
		return b, size, closed, nil
	}
	return &bounded{out, limit}, limit, closed, nil
}

// bounded ends what grows too much, and says of errors that the archive is bad.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("it grows more than %d times: %w", growth, ErrFormat)
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return n, err
}
