package probe

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Report is what one probe of a container has found.
type Report struct {
	Kind      string // "Startup", "Liveness", "Readiness"
	Began     time.Time
	Last      time.Time // when it was made last; zero: not yet
	Next      time.Time // when it will be; zero: it has nothing more to say
	OK        bool      // as of Last
	Errored   bool      // it could not be made
	Output    string    // of the container, or why it could not be made
	InRow     int32     // so many times the same
	Since     time.Time // the first of them
	Enough    bool      // so many as are needed
	Threshold int32     // of failures
	Period    time.Duration
	Succeeded bool // once at least
}

// Success is the first one of a startup or readiness probe.
type Success struct {
	Kind      string
	Began, At time.Time
}

// Reports returns one of each probe that has begun, in that order.
func (c *Container) Reports() (out []Report) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.reports {
		out = append(out, *r)
	}
	return out
}

// Successes returns those that have come since it was last asked.
func (c *Container) Successes() []Success {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.successes
	c.successes = nil
	return out
}

// report begins the report of a probe.
func (c *Container) report(kind string, p *corev1.Probe, began time.Time) *Report {
	r := &Report{Kind: kind, Began: began, Threshold: p.FailureThreshold,
		Period: time.Duration(p.PeriodSeconds) * time.Second}
	c.mu.Lock()
	defer c.mu.Unlock()
	r.Succeeded = kind == Readiness && c.state.Ready // as the last agent saw it
	c.reports = append(c.reports, r)
	return r
}

// result brings a report up to date with what a probe has said.
func (c *Container) result(kind string, ok, enough bool, said string, at time.Time) {
	c.tell(kind, func(r *Report) {
		if r.InRow == 0 || r.OK != ok {
			r.InRow, r.Since = 0, at
		}
		r.InRow++
		r.OK, r.Errored, r.Enough, r.Output, r.Last = ok, false, enough, said, at
	})
}

// tell changes the report of a probe.
func (c *Container) tell(kind string, f func(*Report)) {
	c.note(func() {
		for _, r := range c.reports {
			if r.Kind == kind {
				f(r)
			}
		}
	})
}

// note changes reports.
func (c *Container) note(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

// succeeded notes the first success of a probe that a start waits for.
func (c *Container) succeeded(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.reports, func(r *Report) bool { return r.Kind == kind })
	if r := c.reports[i]; kind != Liveness && !r.Succeeded {
		r.Succeeded = true
		c.successes = append(c.successes, Success{kind, r.Began, time.Now()})
	}
}
