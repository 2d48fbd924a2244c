package config

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Duration is written as "90s" or "4h". One that cannot be read is remembered
// until Validate, which knows the name of its field.
type Duration struct {
	time.Duration
	bad error
}

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) != nil {
		*d = Duration{bad: fmt.Errorf("%s is no duration: want a text such as 90s or 4h", b)}
		return nil
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		err = fmt.Errorf("%q is no duration: want a text such as 90s or 4h", s)
	}
	*d = Duration{v, err}
	return nil
}

// MarshalJSON implements json.Marshaler.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// Bytes is written as a number or with a unit: 10485760, 10Mi. See Duration for
// one that cannot be read.
type Bytes struct {
	N   int64
	bad error
}

// UnmarshalJSON implements json.Unmarshaler.
func (n *Bytes) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) != nil {
		s = string(b)
	}
	q, err := resource.ParseQuantity(s)
	if err != nil || q.Value() == 0 && !q.IsZero() {
		*n = Bytes{bad: fmt.Errorf("%s is no number of bytes: want one such as 10485760 or 10Mi", b)}
		return nil
	}
	*n = Bytes{N: q.Value()}
	return nil
}

// MarshalJSON implements json.Marshaler.
func (n Bytes) MarshalJSON() ([]byte, error) { return strconv.AppendInt(nil, n.N, 10), nil }
