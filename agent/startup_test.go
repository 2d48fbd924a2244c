package agent

import (
	"testing"
	"time"
)

func TestTogether(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(1000+int64(s), 0) }
	for _, c := range []struct {
		what     string
		spans    []span
		from, to int
		want     time.Duration
	}{
		{"nothing", nil, 0, 10, 0},
		{"one after the other", []span{{at(1), at(3)}, {at(5), at(6)}}, 0, 10, 3 * time.Second},
		{"at the same time", []span{{at(2), at(6)}, {at(1), at(5)}, {at(3), at(4)}}, 0, 10, 5 * time.Second},
		{"before and after", []span{{at(-5), at(2)}, {at(8), at(20)}, {at(30), at(40)}}, 0, 10, 4 * time.Second},
		{"not ended", []span{{at(2), time.Time{}}}, 0, 10, 0},
	} {
		if got := together(c.spans, at(c.from), at(c.to)); got != c.want {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}
