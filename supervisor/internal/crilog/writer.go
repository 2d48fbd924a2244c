package crilog

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Options say where the log is and how large it may grow.
type Options struct {
	Path     string
	MaxBytes int64 // 0: no cap
	MaxFiles int   // files kept, the live one included
}

// Writer is one container's log. It never blocks its container on a full disk:
// what cannot be written is dropped and counted, and the log says how much is
// missing as soon as there is room. Not safe for concurrent use.
type Writer struct {
	Options
	// Partial holds, for each stream, a line whose end has not come yet.
	Partial [streams][]byte
	// Lost counts bytes of output that could not be written, ever.
	Lost int64

	// Unreported is the part of Lost that the log does not tell yet, and Cause
	// why it was lost.
	Unreported int64
	Cause      string

	fd   int
	size int64
}

// Scratch is the buffer in which records are laid out. Writers that are used
// one after another share one.
type Scratch struct{ buf []byte }

// flushSize is when a scratch buffer is written out.
const flushSize = 64 << 10

// Open opens a log, or makes it; its directory must exist. The last component
// of the path is never followed if it is a symbolic link, and must be a
// regular file if it exists.
func Open(o Options) (*Writer, error) {
	fd, size, err := openLog(o.Path, 0)
	if err != nil {
		return nil, err
	}
	return &Writer{Options: o, fd: fd, size: size}, nil
}

// Adopt makes a Writer of an open log, as Fd gave it to an upgrade.
func Adopt(o Options, fd int) (*Writer, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat log %s: %w", o.Path, err)
	}
	return &Writer{Options: o, fd: fd, size: st.Size}, nil
}

// Fd is the open log file.
func (w *Writer) Fd() int { return w.fd }

// Write logs output that came from stream s at the time now.
func (w *Writer) Write(sc *Scratch, s Stream, now time.Time, data []byte) {
	h := newHeader(s, now)
	buf := sc.buf[:0]
	for len(data) > 0 {
		line, rest, found := nextLine(data)
		var head, tail []byte
		buf, head, tail = w.appendParts(buf, &h, w.Partial[s], line)
		if !found {
			w.Partial[s] = append(head[:len(head):cap(head)], tail...)
			break
		}
		buf = appendRecord(buf, &h, 'F', head, tail)
		w.Partial[s] = w.Partial[s][:0]
		data = rest
		if len(buf) >= flushSize {
			w.flush(buf)
			buf = buf[:0]
		}
	}
	w.flush(buf)
	sc.buf = buf[:0]
	if len(w.Partial[s]) == 0 && cap(w.Partial[s]) > 1<<10 {
		w.Partial[s] = nil // an idle container costs no buffer
	}
}

// appendParts is the package's appendParts, writing out in between so that a
// very long line does not grow the buffer.
func (w *Writer) appendParts(buf []byte, h *header, head, tail []byte) (out, restHead, restTail []byte) {
	for len(head)+len(tail) > MaxLine {
		n := min(len(tail), flushSize)
		var restPart []byte
		buf, head, restPart = appendParts(buf, h, head, tail[:n])
		tail = tail[n-len(restPart):]
		if len(buf) >= flushSize {
			w.flush(buf)
			buf = buf[:0]
		}
	}
	return buf, head, tail
}

// End logs a line of stream s that will get no end any more.
func (w *Writer) End(sc *Scratch, s Stream, now time.Time) {
	if len(w.Partial[s]) == 0 {
		return
	}
	h := newHeader(s, now)
	sc.buf = appendRecord(sc.buf[:0], &h, 'F', w.Partial[s], nil)
	w.flush(sc.buf)
	w.Partial[s] = nil
}

// Reopen opens the path anew after somebody renamed the log. On an error the
// old file goes on, and no new one was made.
func (w *Writer) Reopen() error {
	fd, size, err := openLog(w.Path, 0)
	if err != nil {
		return err
	}
	unix.Close(w.fd)
	w.fd, w.size = fd, size
	return nil
}

// Close reports what was lost, if it can, and closes the file.
func (w *Writer) Close() {
	w.Report()
	unix.Close(w.fd)
	w.fd = -1
}

// NeedsReport tells whether output was lost and the log does not say so yet.
func (w *Writer) NeedsReport() bool { return w.Unreported > 0 }

// Report writes the line about lost output if one is due, and tells whether
// none is due any more.
func (w *Writer) Report() bool {
	if w.Unreported > 0 {
		w.flush(nil)
	}
	return w.Unreported == 0
}

// flush writes whole records, rotating where the cap demands it.
func (w *Writer) flush(records []byte) {
	if w.Unreported > 0 {
		if err := w.writeNotice(); err != nil {
			w.lose(records, err)
			return
		}
	}
	for len(records) > 0 {
		n := w.room(records)
		if n == 0 {
			if err := w.rotate(); err != nil {
				w.lose(records, err)
				return
			}
			continue
		}
		n, err := w.put(records[:n])
		records = records[n:]
		if err != nil {
			w.lose(records, err)
			return
		}
	}
}

// room tells how many bytes of records fit below the cap, in whole records; 0
// asks for a rotation. A record that is larger than the cap gets a file of its
// own.
func (w *Writer) room(records []byte) int {
	if w.MaxBytes <= 0 || w.size+int64(len(records)) <= w.MaxBytes {
		return len(records)
	}
	if room := w.MaxBytes - w.size; room > 0 {
		if n := bytes.LastIndexByte(records[:room], '\n') + 1; n > 0 {
			return n
		}
	}
	if w.size == 0 {
		return bytes.IndexByte(records, '\n') + 1
	}
	return 0
}

// put writes records and tells how many bytes of whole records it wrote; one
// that was written in part is taken back, so that the file ends with a line.
func (w *Writer) put(records []byte) (int, error) {
	n, err := unix.Write(w.fd, records)
	for err == unix.EINTR {
		n, err = unix.Write(w.fd, records)
	}
	if err != nil {
		return 0, err
	}
	w.size += int64(n)
	if n == len(records) {
		return n, nil
	}
	whole := bytes.LastIndexByte(records[:n], '\n') + 1
	var st unix.Stat_t
	if err := unix.Fstat(w.fd, &st); err != nil {
		return whole, err
	}
	w.size = max(0, st.Size-int64(n-whole))
	if err := unix.Ftruncate(w.fd, w.size); err != nil {
		return whole, err
	}
	return whole, unix.ENOSPC // what a short write to a file means
}

// lose counts the output in records that are not written.
func (w *Writer) lose(records []byte, err error) {
	w.Cause = err.Error()
	if errno := unix.Errno(0); errors.As(err, &errno) {
		w.Cause = errno.Error()
	}
	lines := bytes.Count(records, []byte{'\n'})
	lost := int64(len(records) - lines*headerSize)
	w.Lost += lost
	w.Unreported += lost
}

// writeNotice writes the record that tells about lost output.
func (w *Writer) writeNotice() error {
	h := newHeader(Stderr, time.Now())
	text := fmt.Sprintf("[podstead: %d bytes of output are missing here: %s]", w.Unreported, w.Cause)
	notice := appendRecord(nil, &h, 'F', []byte(text), nil)
	if w.room(notice) == 0 {
		if err := w.rotate(); err != nil {
			return err
		}
	}
	if _, err := w.put(notice); err != nil {
		return err
	}
	w.Unreported = 0
	return nil
}
