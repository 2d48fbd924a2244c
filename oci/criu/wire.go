package criu

import (
	"encoding/binary"
	"errors"
)

// message is a protobuf message being encoded. Fields at their zero value are
// left out, like those that are not set.
type message []byte

const (
	wireVarint = 0
	wireFixed8 = 1
	wireBytes  = 2
	wireFixed4 = 5
)

func (m *message) number(field int, v uint64) {
	*m = binary.AppendUvarint(*m, uint64(field)<<3|wireVarint)
	*m = binary.AppendUvarint(*m, v)
}

func (m *message) flag(field int, v bool) {
	if v {
		m.number(field, 1)
	}
}

func (m *message) bytes(field int, b []byte) {
	*m = binary.AppendUvarint(*m, uint64(field)<<3|wireBytes)
	*m = binary.AppendUvarint(*m, uint64(len(b)))
	*m = append(*m, b...)
}

func (m *message) text(field int, s string) {
	if s != "" {
		m.bytes(field, []byte(s))
	}
}

// part appends a nested message.
func (m *message) part(field int, build func(*message)) {
	var p message
	build(&p)
	m.bytes(field, p)
}

var errMalformed = errors.New("malformed message")

// field is one field of a decoded message.
type field struct {
	number int
	value  uint64 // of a number
	bytes  []byte // of everything else; part of the input
}

// fields calls each with the fields of an encoded message, in order.
func fields(b []byte, each func(field) error) error {
	for len(b) > 0 {
		key, n := binary.Uvarint(b)
		if n <= 0 || key>>3 == 0 || key>>3 > 1<<29 {
			return errMalformed
		}
		b = b[n:]
		f := field{number: int(key >> 3)}
		size := uint64(0)
		switch key & 7 {
		case wireVarint:
			if f.value, n = binary.Uvarint(b); n <= 0 {
				return errMalformed
			}
			b = b[n:]
		case wireFixed8:
			size = 8
		case wireFixed4:
			size = 4
		case wireBytes:
			if size, n = binary.Uvarint(b); n <= 0 {
				return errMalformed
			}
			b = b[n:]
		default:
			return errMalformed
		}
		if size > uint64(len(b)) {
			return errMalformed
		}
		f.bytes, b = b[:size], b[size:]
		if err := each(f); err != nil {
			return err
		}
	}
	return nil
}
