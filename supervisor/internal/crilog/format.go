// Package crilog writes container output to log files in the format of the
// Container Runtime Interface,
//
//	2026-01-02T15:04:05.000000000Z stdout F a line
//
// with F for a full line and P for a part of one that is longer than MaxLine;
// it enforces the size cap and rotates while it writes. It is called by the
// supervisor's pumps, one at a time for each Writer. What was given to Write
// and ended with a newline is in the file when Write returns; the rest is in
// Writer.Partial, which an upgrade carries over.
package crilog

import (
	"bytes"
	"time"
)

// MaxLine is how many bytes of a line one record holds at most, as in other
// runtimes.
const MaxLine = 16 << 10

// Stream is where output came from.
type Stream uint8

// The streams; a pty has Stdout only.
const (
	Stdout Stream = iota
	Stderr
	streams
)

// headerSize is fixed, so that what was output can be told from what was
// written: the timestamp has 30 bytes, the stream 6, the tag 1, and 3 spaces.
const headerSize = 40

type header [headerSize]byte

// newHeader lays out the header of a full line.
func newHeader(s Stream, now time.Time) (h header) {
	b := now.UTC().AppendFormat(h[:0], "2006-01-02T15:04:05.000000000Z")
	if s == Stdout {
		b = append(b, " stdout F "...)
	} else {
		b = append(b, " stderr F "...)
	}
	return header(b[:headerSize])
}

const tagAt = headerSize - 2

// appendRecord appends one record whose line is in two pieces.
func appendRecord(dst []byte, h *header, tag byte, head, tail []byte) []byte {
	dst = append(dst, h[:]...)
	dst[len(dst)-headerSize+tagAt] = tag
	dst = append(dst, head...)
	dst = append(dst, tail...)
	return append(dst, '\n')
}

// appendParts appends P records while head and tail together are longer than
// one record holds, and returns what remains of them.
func appendParts(dst []byte, h *header, head, tail []byte) (out, restHead, restTail []byte) {
	for len(head)+len(tail) > MaxLine {
		n := MaxLine - len(head) // head never exceeds MaxLine
		dst = appendRecord(dst, h, 'P', head, tail[:n])
		head, tail = nil, tail[n:]
	}
	return dst, head, tail
}

// nextLine cuts the first line off data, without its newline.
func nextLine(data []byte) (line, rest []byte, found bool) {
	i := bytes.IndexByte(data, '\n')
	if i < 0 {
		return data, nil, false
	}
	return data[:i], data[i+1:], true
}
