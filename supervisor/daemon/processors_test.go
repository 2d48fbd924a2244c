package daemon

import (
	"runtime"
	"testing"
	"time"
)

// TestProcessors: more than one is for work without a pause only.
func TestProcessors(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(3))
	p := newProcessors()
	p.pause = time.Millisecond
	expect := func(when string, want int) {
		t.Helper()
		if n := runtime.GOMAXPROCS(0); n != want {
			t.Errorf("%s: %d processors, want %d", when, n, want)
		}
	}
	expect("at first", 1)
	now := time.Now()
	p.working(now)
	p.working(now.Add(busyAfter - 1))
	expect("while nobody knows how long it takes", 1)
	p.resting()
	now = now.Add(busyAfter)
	p.working(now)
	expect("after a pause", 1)
	p.working(now.Add(busyAfter))
	expect("after work without a pause", 3)
	p.resting()
	for deadline := time.Now().Add(5 * time.Minute); runtime.GOMAXPROCS(0) != 1 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	expect("when there was a pause", 1)
	p.resting()
	if p.wide {
		t.Error("is taken for wide")
	}
}
