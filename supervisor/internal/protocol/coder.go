package protocol

import (
	"encoding/binary"
	"errors"
	"time"
)

// Coder writes or reads the fields of a message, so that each message lists
// its fields once, in one order, for both directions. Reading stops at the
// first error and leaves the rest zero.
type Coder struct {
	buf     []byte
	reading bool
	err     error
}

// Coded is a message, or a part of one.
type Coded interface{ Code(*Coder) }

var errMalformed = errors.New("malformed message")

// Encode returns the encoding of m.
func Encode(m Coded) []byte {
	c := Coder{}
	m.Code(&c)
	return c.buf
}

// Decode fills m from b; it never panics, whatever the bytes are.
func Decode(b []byte, m Coded) error {
	c := Coder{buf: b, reading: true}
	m.Code(&c)
	return c.err
}

// Uint codes an unsigned number.
func (c *Coder) Uint(p *uint64) {
	if !c.reading {
		c.buf = binary.AppendUvarint(c.buf, *p)
		return
	}
	if len(c.buf) == 0 || c.err != nil {
		return // a field that the writer did not know yet
	}
	v, n := binary.Uvarint(c.buf)
	if n <= 0 {
		c.fail()
		return
	}
	*p, c.buf = v, c.buf[n:]
}

// Int codes a signed number.
func (c *Coder) Int(p *int64) {
	u := uint64(*p<<1) ^ uint64(*p>>63)
	c.Uint(&u)
	*p = int64(u>>1) ^ -int64(u&1)
}

// IntVar codes an int.
func (c *Coder) IntVar(p *int) {
	v := int64(*p)
	c.Int(&v)
	*p = int(v)
}

// Bool codes a truth value.
func (c *Coder) Bool(p *bool) {
	var u uint64
	if *p {
		u = 1
	}
	c.Uint(&u)
	*p = u != 0
}

// Time codes a time to the nanosecond, without its location.
func (c *Coder) Time(p *time.Time) {
	var v int64
	if !p.IsZero() {
		v = p.UnixNano()
	}
	c.Int(&v)
	if c.reading {
		*p = time.Time{}
		if v != 0 {
			*p = time.Unix(0, v)
		}
	}
}

// Bytes codes a byte string; what is read does not alias the message.
func (c *Coder) Bytes(p *[]byte) {
	n := uint64(len(*p))
	c.Uint(&n)
	if !c.reading {
		c.buf = append(c.buf, *p...)
		return
	}
	*p = nil
	if c.err != nil || n == 0 {
		return
	}
	if n > uint64(len(c.buf)) {
		c.fail()
		return
	}
	*p = append([]byte(nil), c.buf[:n]...)
	c.buf = c.buf[n:]
}

// String codes a string.
func (c *Coder) String(p *string) {
	n := uint64(len(*p))
	c.Uint(&n)
	if !c.reading {
		c.buf = append(c.buf, *p...)
		return
	}
	*p = ""
	if c.err != nil {
		return
	}
	if n > MaxString || n > uint64(len(c.buf)) {
		c.fail()
		return
	}
	*p, c.buf = string(c.buf[:n]), c.buf[n:]
}

// Slice codes a list; each codes one element. An element takes a byte at
// least, which bounds what a reader allocates.
func Slice[T any](c *Coder, p *[]T, each func(*Coder, *T)) {
	n := uint64(len(*p))
	c.Uint(&n)
	if c.reading {
		*p = nil
		if c.err != nil || n == 0 {
			return
		}
		if n > uint64(len(c.buf)) {
			c.fail()
			return
		}
		*p = make([]T, 0, min(n, 1024))
		for range n {
			var v T
			each(c, &v)
			if c.err != nil {
				return
			}
			*p = append(*p, v)
		}
		return
	}
	for i := range *p {
		each(c, &(*p)[i])
	}
}

// Nested codes a part of a message with a length before it, so that fields can
// be added at its end. Elements of lists need it.
func (c *Coder) Nested(m Coded) {
	if !c.reading {
		b := Encode(m)
		c.Bytes(&b)
		return
	}
	var b []byte
	c.Bytes(&b)
	if c.err != nil {
		return
	}
	if err := Decode(b, m); err != nil {
		c.err = err
	}
}

func (c *Coder) fail() { c.err = errMalformed }
