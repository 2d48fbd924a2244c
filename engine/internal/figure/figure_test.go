package figure

import (
	"testing"
	"time"

	"podstead/cgroup"
)

func TestRate(t *testing.T) {
	const second, ms = time.Second, time.Millisecond
	start := time.Unix(1_800_000_000, 0)
	type step struct {
		at   time.Duration // since the start
		used time.Duration // processor time
		want int64         // nanocores, -1 for none
	}
	for _, test := range []struct {
		name  string
		known bool // the time of the start
		steps []step
	}{
		{"since the start at first", true, []step{{4 * second, 2 * second, 500_000_000}}},
		{"none at first without it", false, []step{{4 * second, 2 * second, -1}, {6 * second, 4 * second, 1_000_000_000}}},
		{"since the last question, if that is long ago", true, []step{{3600 * second, 0, 0}, {3660 * second, 30 * second, 500_000_000}}},
		{"over ten seconds, however often one asks", true, []step{
			{100 * second, 10 * second, 100_000_000},
			{105 * second, 10 * second, 95_238_095}, // not yet ten seconds: still from the start
			{110 * second, 15 * second, 500_000_000},
			{110*second + 5*ms, 15*second + 5*ms, 500_000_000},
			{115 * second, 20 * second, 1_000_000_000},
		}},
		{"none of a group that was made anew", true, []step{{10 * second, 5 * second, 500_000_000}, {20 * second, 1 * second, -1}}},
		{"none of an instant", true, []step{{ms, ms, -1}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var k CPUClock
			since := time.Time{}
			if test.known {
				since = start
			}
			for _, s := range test.steps {
				u := k.Usage(cgroup.Stats{Time: start.Add(s.at), CPUNanoseconds: uint64(s.used)}, since)
				got := int64(-1)
				if u.UsageNanoCores != nil {
					got = int64(u.UsageNanoCores.Value)
				}
				if d := got - s.want; d < -2_000_000 || d > 2_000_000 {
					t.Errorf("after %v the rate is %d, want %d", s.at, got, s.want)
				}
			}
			if len(k.samples) > 12 {
				t.Errorf("%d samples are kept", len(k.samples))
			}
		})
	}
}

func TestRateLeavesOutThePreparation(t *testing.T) {
	var k CPUClock
	start := time.Unix(1_800_000_000, 0)
	k.Begin(start, uint64(time.Second))
	u := k.Usage(cgroup.Stats{Time: start.Add(2 * time.Second), CPUNanoseconds: uint64(2 * time.Second)}, start)
	if got := u.UsageNanoCores.GetValue(); got != 500_000_000 {
		t.Errorf("the rate is %d", got)
	}
}

func TestWhatTheHostDoesNotTellIsAbsent(t *testing.T) {
	if m := Memory(cgroup.Stats{}); m != nil {
		t.Errorf("memory without a controller is %v", m)
	}
	if u := Swap(cgroup.Stats{HasMemory: true}); u != nil {
		t.Errorf("swap that is not accounted is %v", u)
	}
	if u := Swap(cgroup.Stats{HasSwap: true, SwapBytes: 5, SwapLimitBytes: cgroup.Unlimited}); u.SwapUsageBytes.GetValue() != 5 || u.SwapAvailableBytes != nil {
		t.Errorf("unlimited swap is %v", u)
	}
	if u := Swap(cgroup.Stats{HasSwap: true}); u.SwapAvailableBytes == nil {
		t.Error("that there is no swap is not said")
	}
	if p := psi(nil); p != nil {
		t.Errorf("pressure that is not measured is %v", p)
	}
}
