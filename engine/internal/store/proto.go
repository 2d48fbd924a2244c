package store

import (
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Message puts a protobuf message into a JSON record.
type Message[T any, P interface {
	*T
	proto.Message
}] struct {
	// M is nil if there is none.
	M P
}

// MarshalJSON writes the protobuf JSON form.
func (m Message[T, P]) MarshalJSON() ([]byte, error) {
	if m.M == nil {
		return []byte("null"), nil
	}
	return protojson.MarshalOptions{AllowPartial: true, UseProtoNames: true}.Marshal(m.M)
}

// UnmarshalJSON reads it; unknown fields, of a later version, are dropped.
func (m *Message[T, P]) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		m.M = nil
		return nil
	}
	m.M = new(T)
	return protojson.UnmarshalOptions{AllowPartial: true, DiscardUnknown: true}.Unmarshal(b, m.M)
}
