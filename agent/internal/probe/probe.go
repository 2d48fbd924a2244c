// Package probe watches over one running container by its startup, liveness and
// readiness probes, one goroutine each, with the kubelet's rules: thresholds,
// delays and what counts as success. It decides nothing: its state is read by
// the pod's worker. Who goes on after a restart of the agent passes the last state
// in, and it holds until a probe says otherwise; how far probes were on their way to
// a threshold is in a Book.
package probe

import (
	"context"
	"fmt"
	"hash/fnv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// State is what the probes say.
type State struct {
	Started bool // the startup probe succeeded, or there is none
	Ready   bool
	// Failed, if not "", is why the container is to be killed: the message of
	// the Killing event. Grace is that of the probe that failed, if it has one.
	Failed string
	Grace  *int64
}

// Config of a Container.
type Config struct {
	ID        string // container ID
	Spec      *corev1.Container
	Target    Target
	StartedAt time.Time
	// Carry is the state before a restart of the agent, nil for a new container.
	Carry *State
	// Counts are those that Keep was called with last, by kind, before a restart of
	// the agent. Keep is called when one changes, before anything is done about it.
	Counts Counts
	Keep   func(kind string, c Count)
	// Changed is called, from another goroutine, when State is different.
	Changed func()
	// Failure is called for every probe that fails: the Unhealthy event.
	Failure func(message string)
	// Result is called for every probe: a kind ("Liveness"), and whether it could
	// be made (err) and what it said.
	Result func(kind string, ok bool, err error, took time.Duration)
}

// Container is a container under watch.
type Container struct {
	cfg    Config
	cancel context.CancelFunc
	wg     sync.WaitGroup
	ending atomic.Bool

	mu        sync.Mutex
	state     State
	reports   []*Report
	successes []Success
}

// Kinds of probes; the words of events and messages.
const (
	Startup   = "Startup"
	Liveness  = "Liveness"
	Readiness = "Readiness"
)

// Watch begins. It ends by Stop or when ctx does.
func Watch(ctx context.Context, cfg Config) *Container {
	ctx, cancel := context.WithCancel(ctx)
	c := &Container{cfg: cfg, cancel: cancel}
	s := cfg.Spec
	c.state = State{Started: s.StartupProbe == nil, Ready: s.ReadinessProbe == nil && s.StartupProbe == nil}
	if carry := cfg.Carry; carry != nil {
		c.state.Started = c.state.Started || carry.Started
		c.state.Ready = (s.ReadinessProbe == nil || carry.Ready) && c.state.Started
	}
	if c.state.Started {
		c.running(ctx, cfg.StartedAt)
	} else {
		c.loop(ctx, Startup, s.StartupProbe, cfg.StartedAt)
	}
	return c
}

// Stop ends all probes and waits for them.
func (c *Container) Stop() {
	c.cancel()
	c.wg.Wait()
}

// Ending says that the container is about to end: from now on only its readiness is
// asked for. Whether it has started or lives does not matter any more.
func (c *Container) Ending() { c.ending.Store(true) }

// over tells whether a probe has nothing more to say.
func (c *Container) over(ctx context.Context, kind string) bool {
	return ctx.Err() != nil || kind != Readiness && c.ending.Load()
}

// State returns what the probes say now.
func (c *Container) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// running begins the probes of a container that has started by then.
func (c *Container) running(ctx context.Context, began time.Time) {
	c.loop(ctx, Liveness, c.cfg.Spec.LivenessProbe, began)
	c.loop(ctx, Readiness, c.cfg.Spec.ReadinessProbe, began)
}

func (c *Container) change(f func(*State)) {
	c.mu.Lock()
	before := c.state
	f(&c.state)
	changed := before != c.state
	c.mu.Unlock()
	if changed {
		c.cfg.Changed()
	}
}

// loop runs one probe at its pace until it has nothing more to say.
func (c *Container) loop(ctx context.Context, kind string, p *corev1.Probe, began time.Time) {
	if p == nil {
		return
	}
	period := time.Duration(p.PeriodSeconds) * time.Second
	delay := time.Duration(p.InitialDelaySeconds) * time.Second
	if kind == Liveness {
		// A container that has just been started is alive. To ask what it has not
		// had the time to answer could only kill it.
		delay = max(delay, period)
	}
	count := c.cfg.Counts[kind]
	if count.Probe != name(p) {
		count = Count{}
	}
	report := c.report(kind, p, began)
	if count.N > 0 && count.reached(p) && c.verdict(ctx, kind, p, count.OK) {
		return
	}
	first := time.Until(c.cfg.StartedAt.Add(delay))
	if wait, known := count.next(time.Now(), period); known {
		first = wait
	} else if c.cfg.Carry != nil {
		// All containers of the node are taken up at once: spread them.
		first = max(first, spread(c.cfg.ID+kind, period))
	}
	c.note(func() {
		report.Next = time.Now().Add(max(first, 0))
		if count.N > 0 {
			report.OK, report.InRow, report.Enough, report.Last, report.Since = count.OK, count.N, count.reached(p), count.At, count.At
		}
	})
	c.wg.Go(func() {
		timer := time.NewTimer(max(first, 0))
		defer timer.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
			if c.over(ctx, kind) {
				c.note(func() { report.Next = time.Time{} })
				return
			}
			began := time.Now()
			c.note(func() { report.Next = began.Add(period) })
			done := c.once(ctx, kind, p, &count)
			if !done && c.young(kind, p) {
				done = c.eager(ctx, kind, p, &count, began.Add(period))
			}
			if done {
				c.note(func() { report.Next = time.Time{} })
				return
			}
			timer.Reset(max(0, period-time.Since(began)))
		}
	})
}

// spread is a point of a period that depends on a name only.
func spread(name string, period time.Duration) time.Duration {
	h := fnv.New64a()
	h.Write([]byte(name))
	x := h.Sum64()
	return time.Duration((x^x>>32)%uint64(period/time.Millisecond)) * time.Millisecond
}

// count counts a result and has it kept.
func (c *Container) count(kind string, p *corev1.Probe, n *Count, ok bool, at time.Time) {
	if n.add(p, ok, at) && c.cfg.Keep != nil {
		c.cfg.Keep(kind, *n)
	}
}

// tries is how often a probe that could not be made is tried at once.
const tries = 3

func (c *Container) once(ctx context.Context, kind string, p *corev1.Probe, n *Count) (done bool) {
	var ok bool
	var output string
	var err error
	began := time.Now()
	for range tries {
		if ok, output, err = c.cfg.Target.check(ctx, p); err == nil || ctx.Err() != nil {
			break
		}
	}
	if c.over(ctx, kind) {
		return true
	}
	if c.cfg.Result != nil {
		c.cfg.Result(kind, ok, err, time.Since(began))
	}
	said := strings.TrimSpace(output)
	if err != nil {
		said = err.Error()
	}
	if err != nil {
		c.tell(kind, func(r *Report) { r.Errored, r.Output, r.Last = true, said, began })
		c.cfg.Failure(fmt.Sprintf("%s probe errored and resulted in unknown state: %v", kind, err))
		return false // it says nothing about the container
	}
	if !ok {
		c.cfg.Failure(fmt.Sprintf("%s probe failed: %s", kind, said))
	}
	c.count(kind, p, n, ok, began)
	c.result(kind, ok, n.reached(p), said, began)
	if !n.reached(p) {
		return false
	}
	return c.verdict(ctx, kind, p, ok)
}

func (c *Container) verdict(ctx context.Context, kind string, p *corev1.Probe, ok bool) (done bool) {
	if ok {
		c.succeeded(kind)
	}
	switch {
	case kind == Readiness:
		c.change(func(s *State) { s.Ready = ok })
	case !ok:
		c.change(func(s *State) {
			s.Ready = false
			s.Failed = fmt.Sprintf("Container %s failed %s probe, will be restarted", c.cfg.Spec.Name, strings.ToLower(kind))
			s.Grace = p.TerminationGracePeriodSeconds
		})
		return true
	case kind == Startup:
		c.change(func(s *State) {
			s.Started = true
			s.Ready = c.cfg.Spec.ReadinessProbe == nil
		})
		c.running(ctx, time.Now())
		return true
	}
	return false
}
