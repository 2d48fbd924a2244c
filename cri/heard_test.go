package cri

import (
	"context"
	"testing"
	"time"
)

func TestHeard(t *testing.T) {
	within := func(d time.Duration) context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		t.Cleanup(cancel)
		return ctx
	}
	left, leave := context.WithCancel(t.Context())
	leave()
	for _, c := range []struct {
		what string
		ctx  context.Context
		want bool
	}{
		{"without a deadline", t.Context(), true},
		{"with time", within(time.Hour), true},
		{"about to leave", within(onTheWay / 2), false},
		{"left at its deadline", within(-time.Second), false},
		{"left", left, false},
	} {
		if got := Heard(c.ctx); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}
