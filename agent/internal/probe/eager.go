package probe

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// A container is young for that long after its start: it is about to listen any
// moment, and a whole period is long to find that out. eagerFirst is the wait
// before the first try beside the regular ones; each next wait is twice as long.
const (
	youth      = 10 * time.Second
	eagerFirst = 25 * time.Millisecond
)

// young tells whether a probe is tried more often than its period says: one that
// waits for a container's first success, over the network. A command costs the
// container more than an answer.
func (c *Container) young(kind string, p *corev1.Probe) bool {
	if c.cfg.Carry != nil || p.Exec != nil || kind == Liveness || time.Since(c.cfg.StartedAt) > youth {
		return false
	}
	s := c.State()
	return kind == Startup && !s.Started || kind == Readiness && !s.Ready
}

// eager tries a probe until the next regular one is due. Only success counts: a
// failure is no event, and takes nobody nearer to the failure threshold.
func (c *Container) eager(ctx context.Context, kind string, p *corev1.Probe, n *Count, until time.Time) (done bool) {
	timer := time.NewTimer(eagerFirst)
	defer timer.Stop()
	for wait := eagerFirst; time.Now().Add(wait).Before(until); wait *= 2 {
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return true
		case <-timer.C:
		}
		ok, _, err := c.cfg.Target.check(ctx, p)
		if c.over(ctx, kind) {
			return true
		}
		if err != nil || !ok {
			continue
		}
		c.count(kind, p, n, true, until.Add(-time.Duration(p.PeriodSeconds)*time.Second))
		c.result(kind, true, n.reached(p), "", time.Now())
		if n.reached(p) {
			return c.verdict(ctx, kind, p, true)
		}
		return false
	}
	return false
}
