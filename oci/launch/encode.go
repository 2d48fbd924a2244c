package launch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// formatVersion is the first byte of an encoded program. Engine and supervisor
// may be of different versions during an upgrade: a program of another format
// is refused, not guessed at.
const formatVersion = 3

// maxZeros bounds what a false length can allocate, beyond what was sent. A
// program has some KiB of room for results.
const maxZeros = 256 << 10

// MarshalBinary encodes the program for the supervisor.
func (p *Program) MarshalBinary() ([]byte, error) {
	c := codec{buf: make([]byte, 0, len(p.data)+64*len(p.ops)), encoding: true}
	q := *p
	q.walk(&c)
	return c.buf, c.err
}

// UnmarshalBinary decodes and checks a program: it never crashes or executes
// anything out of bounds, whatever the bytes are.
func (p *Program) UnmarshalBinary(b []byte) error {
	c := codec{buf: b}
	var q Program
	q.walk(&c)
	if n := len(c.rest()); c.err == nil && n > 0 {
		c.err = fmt.Errorf("%d bytes too many", n)
	}
	if c.err == nil {
		c.err = q.check()
	}
	if c.err != nil {
		return fmt.Errorf("decode launch program: %w", c.err)
	}
	*p = q
	return nil
}

// walk visits every field in the order of the encoding, for both directions.
func (p *Program) walk(c *codec) {
	version := uint8(formatVersion)
	number(c, &version)
	if version != formatVersion {
		c.fail(fmt.Errorf("format %d is unknown", version))
	}
	c.text(&p.id)
	number(c, &p.clone)
	number(c, &p.cgroup)
	number(c, &p.pidns)
	c.flag(&p.terminal)
	number(c, &p.owner)
	c.maps(&p.maps)
	list(c, &p.parent, (*parentStep).walk)
	list(c, &p.slots, (*slot).walk)
	list(c, &p.passed, func(s *int, c *codec) { number(c, s) })
	number(c, &p.regs)
	list(c, &p.ops, (*op).walk)
	c.sparse(&p.data)
	list(c, &p.relocs, func(r *reloc, c *codec) {
		number(c, &r.at)
		number(c, &r.to)
	})
}

func (s *parentStep) walk(c *codec) {
	c.text(&s.label)
	c.text(&s.file)
	c.text(&s.content)
	number(c, &s.resource)
	number(c, &s.soft)
	number(c, &s.hard)
}

func (s *slot) walk(c *codec) {
	number(c, &s.kind)
	c.text(&s.path)
	for _, n := range []*uint64{&s.flags, &s.set, &s.clear, &s.rset, &s.rclear, &s.propagation} {
		number(c, n)
	}
	c.maps(&s.idmap)
	list(c, &s.lower, textItem)
	c.text(&s.upper)
	c.text(&s.work)
	list(c, &s.mountOptions, textItem)
	c.bytes(&s.content)
	c.text(&s.label)
}

func (o *op) walk(c *codec) {
	number(c, &o.call)
	n := uint8(len(o.args))
	for c.encoding && n > 0 && o.args[n-1] == (arg{}) {
		n--
	}
	number(c, &n)
	if int(n) > len(o.args) {
		c.fail(errors.New("too many arguments"))
		return
	}
	for i := range o.args[:n] {
		number(c, &o.args[i].kind)
		number(c, &o.args[i].value)
	}
	number(c, &o.out)
	for i := range o.pass {
		number(c, (*uintptr)(&o.pass[i]))
	}
	number(c, &o.skipOK)
	number(c, &o.skipErr)
	c.text(&o.text)
	c.flag(&o.whole)
}

func textItem(s *string, c *codec) { c.text(s) }

// codec encodes or decodes. The first error ends both.
type codec struct {
	buf      []byte // what was encoded, or what is to be decoded
	at       int    // how much of it was
	encoding bool
	err      error
}

var errShort = errors.New("too short")

// rest is what is left to decode.
func (c *codec) rest() []byte { return c.buf[c.at:] }

func (c *codec) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

type integer interface {
	~int | ~uint8 | ~uint16 | ~uint32 | ~uint64 | ~uintptr
}

func number[T integer](c *codec, v *T) {
	if c.err != nil {
		return
	}
	if c.encoding {
		c.buf = binary.AppendVarint(c.buf, int64(*v))
		return
	}
	x, n := binary.Varint(c.rest())
	if n <= 0 {
		c.fail(errShort)
		return
	}
	c.at += n
	*v = T(x)
	if int64(*v) != x {
		c.fail(fmt.Errorf("number %d is out of range", x))
	}
}

func (c *codec) flag(v *bool) {
	var n uint8
	if *v {
		n = 1
	}
	number(c, &n)
	*v = n != 0
}

// piece encodes v with its length, or returns what was decoded, which is the
// message's.
func piece[T []byte | string](c *codec, v T) (decoded []byte, ok bool) {
	n := len(v)
	number(c, &n)
	switch {
	case c.err != nil:
	case c.encoding:
		c.buf = append(c.buf, v...)
	case n < 0 || n > len(c.rest()):
		c.fail(errShort)
	default:
		decoded = c.rest()[:n]
		c.at += n
		return decoded, true
	}
	return nil, false
}

func (c *codec) bytes(v *[]byte) {
	b, ok := piece(c, *v)
	if ok {
		*v = append([]byte(nil), b...)
	}
}

// sparse is bytes for what is zeros for the most part: its runs of them are
// counted.
func (c *codec) sparse(v *[]byte) {
	n := len(*v)
	number(c, &n)
	if n < 0 || !c.encoding && n > len(c.rest())+maxZeros {
		c.fail(fmt.Errorf("%d bytes of data", n))
	}
	if c.err != nil {
		return
	}
	if !c.encoding {
		*v = make([]byte, n)
	}
	for rest := *v; len(rest) > 0 && c.err == nil; {
		zeros, other := 0, rest
		if c.encoding {
			zeros, other = firstRun(rest)
		}
		number(c, &zeros)
		if c.err != nil || zeros < 0 || zeros > len(rest) {
			c.fail(errShort)
			return
		}
		rest = rest[zeros:]
		c.bytes(&other)
		if len(other) > len(rest) || zeros+len(other) == 0 {
			c.fail(errShort)
			return
		}
		if !c.encoding {
			copy(rest, other)
		}
		rest = rest[len(other):]
	}
}

// firstRun returns how many zeros are at the beginning of b, and what follows
// up to the next run that is worth it.
func firstRun(b []byte) (zeros int, other []byte) {
	for zeros < len(b) && b[zeros] == 0 {
		zeros++
	}
	other = b[zeros:]
	if i := bytes.Index(other, make([]byte, 32)); i >= 0 {
		other = other[:i]
	}
	return zeros, other
}

func (c *codec) text(v *string) {
	b, ok := piece(c, *v)
	if ok {
		*v = string(b)
	}
}

func (c *codec) maps(v **idMaps) {
	some := *v != nil
	c.flag(&some)
	if !some || c.err != nil {
		return
	}
	if !c.encoding {
		*v = &idMaps{}
	}
	c.text(&(*v).UID)
	c.text(&(*v).GID)
}

// list visits the elements of a slice. Each takes at least a byte, which
// bounds what a false length can allocate.
func list[T any](c *codec, v *[]T, visit func(*T, *codec)) {
	n := len(*v)
	number(c, &n)
	if c.err != nil {
		return
	}
	if !c.encoding {
		if n < 0 || n > len(c.rest()) {
			c.fail(errShort)
			return
		}
		*v = make([]T, n)
	}
	for i := range *v {
		if c.err != nil {
			return
		}
		visit(&(*v)[i], c)
	}
}
