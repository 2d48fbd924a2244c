package launch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// formatVersion is the first byte of an encoded program. Engine and supervisor
// may be of different versions during an upgrade: a program of another format
// is refused, not guessed at.
const formatVersion = 4

// maxZeros bounds what a false length can allocate, beyond what was sent. A
// program has some KiB of room for results.
const maxZeros = 256 << 10

// Encoded returns the program as one that can only be opened and encoded, which
// takes less memory, about size bytes, and no time: for one that is launched again
// and again.
func (p *Program) Encoded() (encoded *Program, size int, err error) {
	b, err := p.MarshalBinary()
	if err != nil {
		return nil, 0, err
	}
	return &Program{id: p.id, terminal: p.terminal, slots: p.slots, encoded: slices.Clone(b)}, len(b), nil
}

// MarshalBinary encodes the program for the supervisor. What it returns is not
// to be changed.
func (p *Program) MarshalBinary() ([]byte, error) {
	if p.encoded != nil {
		return p.encoded, nil
	}
	c := codec{buf: make([]byte, 0, len(p.data)/2+48*len(p.ops)), encoding: true}
	q := *p
	q.walk(&c)
	return c.buf, c.err
}

// UnmarshalBinary decodes and checks a program: it never crashes or executes
// anything out of bounds, whatever the bytes are. It uses the memory that p has
// of a program before.
func (p *Program) UnmarshalBinary(b []byte) error {
	c := codec{buf: b, texts: string(b)}
	q := Program{ops: p.ops[:0], data: p.data[:0]}
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

// What an operation has beside its call and its text: in the lowest bits of a
// number, with the number of arguments above.
const (
	opOut = 1 << iota
	opPass
	opSkip
	opWhole
	opArgs = iota // bits
)

// traits are those of an operation that is encoded.
func (o *op) traits() (n int, traits uint8) {
	n = len(o.args)
	for n > 0 && o.args[n-1] == (arg{}) {
		n--
	}
	if o.out != noReg {
		traits |= opOut
	}
	if o.pass != ([maxPass]uint16{}) {
		traits |= opPass
	}
	if o.skipOK != 0 || o.skipErr != 0 {
		traits |= opSkip
	}
	if o.whole {
		traits |= opWhole
	}
	return n, traits | uint8(n)<<opArgs
}

func (o *op) walk(c *codec) {
	number(c, &o.call)
	n, traits := o.traits()
	number(c, &traits)
	if n = int(traits >> opArgs); n > len(o.args) {
		c.fail(errors.New("too many arguments"))
		return
	}
	var kinds uint16 // two bits each
	for i := range o.args[:n] {
		kinds |= uint16(o.args[i].kind) << (2 * i)
	}
	number(c, &kinds)
	for i := range o.args[:n] {
		o.args[i].kind = argKind(kinds >> (2 * i) & 3)
		number(c, &o.args[i].value)
	}
	if !c.encoding {
		o.out, o.whole = noReg, traits&opWhole != 0
	}
	if traits&opOut != 0 {
		number(c, &o.out)
	}
	if traits&opPass != 0 {
		for i := range o.pass {
			number(c, &o.pass[i])
		}
	}
	if traits&opSkip != 0 {
		number(c, &o.skipOK)
		number(c, &o.skipErr)
	}
	c.text(&o.text)
}

func textItem(s *string, c *codec) { c.text(s) }

// codec encodes or decodes. The first error ends both.
type codec struct {
	buf      []byte // what was encoded, or what is to be decoded
	texts    string // the same as what is to be decoded, for texts to be part of
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
	var x int64
	if c.at < len(c.buf) && c.buf[c.at] < 0x80 { // most of them; as Varint does
		b := c.buf[c.at]
		x = int64(b>>1) ^ -int64(b&1)
		c.at++
	} else {
		var n int
		if x, n = binary.Varint(c.rest()); n <= 0 {
			c.fail(errShort)
			return
		}
		c.at += n
	}
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
		*v = zeros(*v, n)
	}
	for rest := *v; len(rest) > 0 && c.err == nil; {
		skip, other := 0, rest
		if c.encoding {
			skip, other = firstRun(rest)
		}
		number(c, &skip)
		if c.err != nil || skip < 0 || skip > len(rest) {
			c.fail(errShort)
			return
		}
		rest = rest[skip:]
		if b, ok := piece(c, other); ok {
			other = b
		}
		if len(other) > len(rest) || skip+len(other) == 0 {
			c.fail(errShort)
			return
		}
		if !c.encoding {
			copy(rest, other)
		}
		rest = rest[len(other):]
	}
}

// worthCounting is how many zeros are counted and not sent.
const worthCounting = 32

// firstRun returns how many zeros are at the beginning of b, and what follows
// up to the next run that is worth it.
func firstRun(b []byte) (zeros int, other []byte) {
	for zeros < len(b) && b[zeros] == 0 {
		zeros++
	}
	other = b[zeros:]
	for i, n := 0, 0; i < len(other); i++ {
		if n++; other[i] != 0 {
			n = 0
		} else if n == worthCounting {
			return zeros, other[:i+1-n]
		}
	}
	return zeros, other
}

func (c *codec) text(v *string) {
	if b, ok := piece(c, *v); ok {
		*v = c.texts[c.at-len(b) : c.at]
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

// zeros returns n of them, in the memory that s has if that is enough.
func zeros[T any](s []T, n int) []T {
	if n > cap(s) {
		return make([]T, n)
	}
	clear(s[:n])
	return s[:n]
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
		*v = zeros(*v, n)
	}
	for i := range *v {
		if c.err != nil {
			return
		}
		visit(&(*v)[i], c)
	}
}
