package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/client"
	"podstead/agent/internal/eviction"
	"podstead/agent/internal/pressure"
)

const (
	// lookPeriod is how often the host is looked at, alarmPeriod how often while
	// memory is nearly out. Between, the kernel tells of stalls for memory.
	lookPeriod  = 10 * time.Second
	alarmPeriod = time.Second
	// hardGrace is what a pod gets that has to go at once.
	hardGrace = time.Second
	// endTimeout is how much longer than its grace an evicted pod is waited for
	// before another is chosen, measureTimeout how long directories are measured.
	endTimeout     = 30 * time.Second
	measureTimeout = 30 * time.Second
)

// evictor looks after what pods share: it has images removed and pods evicted,
// one at a time, before the node runs out of memory, disk or processes. Its
// goroutine owns the fields above mu.
type evictor struct {
	agent *Agent
	watch eviction.Watch
	pace  eviction.Pace
	log   *slog.Logger
	// read and stalls are the host's, or a test's.
	read   func() (eviction.Observation, error)
	stalls func(ctx context.Context, told func()) error
	host   pressure.Host
	told   chan struct{}            // of a stall; of capacity 1
	unread string                   // what could not be read, as it was logged
	spared map[eviction.Signal]bool // images were collected for it

	mu  sync.Mutex
	met []eviction.Met // what is short
}

func newEvictor(a *Agent, p eviction.Policy) *evictor {
	e := &evictor{agent: a, watch: eviction.Watch{Policy: p}, log: a.cfg.Log, host: pressure.Host{NodeFs: a.cfg.StateDir},
		stalls: pressure.Stalls, told: make(chan struct{}, 1), spared: map[eviction.Signal]bool{}}
	e.read = e.observe
	if e.bounded() {
		e.watch.Policy = p.WithAllocatable()
	}
	return e
}

// bounded tells whether pods have less memory than the node.
func (e *evictor) bounded() bool {
	all, r := e.agent.node.capacity, e.agent.cfg.Policy.Node
	left := reserved(all, r)
	return r.EnforcePods && !e.agent.node.cgroups.off() && left.Memory().Cmp(*all.Memory()) < 0
}

// observe reads the host, and what all pods together use.
func (e *evictor) observe() (eviction.Observation, error) {
	seen, err := e.host.Read()
	if e.bounded() {
		left := reserved(e.agent.node.capacity, e.agent.cfg.Policy.Node)
		used, usedErr := e.agent.node.cgroups.used()
		if usedErr == nil {
			all := left.Memory().Value()
			seen[eviction.AllocatableMemory] = eviction.Reading{Available: max(all-used, 0), Capacity: all}
		}
		err = errors.Join(err, usedErr)
	}
	return seen, err
}

// run looks after the node until ctx ends.
func (e *evictor) run(ctx context.Context) {
	if len(e.watch.Thresholds) == 0 && !e.watch.LocalStorage {
		return
	}
	e.agent.wg.Go(func() {
		if err := e.stalls(ctx, e.stalled); err != nil && ctx.Err() == nil {
			e.log.Info("the kernel does not tell of stalls for memory; it is looked at every "+lookPeriod.String(), "because", err)
		}
	})
	if e.bounded() {
		e.agent.wg.Go(func() { e.near(ctx) })
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-e.told:
		}
		timer.Reset(e.look(ctx))
	}
}

// near waits for the kernel to tell that all pods together come near to what they
// may have of memory.
func (e *evictor) near(ctx context.Context) {
	left := reserved(e.agent.node.capacity, e.agent.cfg.Policy.Node)
	all := left.Memory().Value()
	keep := int64(0)
	for _, t := range e.watch.Thresholds {
		if t.Signal == eviction.AllocatableMemory {
			keep = max(keep, t.Of(all))
		}
	}
	c := e.agent.node.cgroups
	g := c.hierarchy.Group(c.path())
	dir := g.Dir()
	if !c.hierarchy.Unified() {
		dir = filepath.Dir(g.JoinFile("memory"))
	}
	if err := pressure.Near(ctx, dir, all-keep, e.stalled); err != nil && ctx.Err() == nil {
		e.log.Info("the kernel does not tell how near pods are to their memory; it is looked at every "+lookPeriod.String(), "because", err)
	}
}

func (e *evictor) stalled() {
	select {
	case e.told <- struct{}{}:
	default:
	}
}

// look looks at the node once, does the next thing, and tells when to look again.
func (e *evictor) look(ctx context.Context) (next time.Duration) {
	v := e.judge(ctx)
	next = lookPeriod
	if v.Soon {
		next = alarmPeriod
	}
	if wait := time.Until(v.Wake); !v.Wake.IsZero() && wait > 0 {
		next = min(next, wait)
	}
	if e.watch.LocalStorage && e.overLimit(ctx) || v.Act != nil && e.reclaim(ctx, *v.Act) {
		return alarmPeriod // to see whether it was enough
	}
	return next
}

// judge reads the host and tells of what is new.
func (e *evictor) judge(ctx context.Context) eviction.Verdict {
	e.findImages(ctx)
	seen, err := e.read()
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != e.unread {
		e.log.Warn("not all of the node's resources can be watched", "error", err)
	}
	e.unread = text
	v := e.watch.Look(time.Now(), seen)
	e.mu.Lock()
	old := e.met
	e.met = v.Met
	e.mu.Unlock()
	for _, m := range v.Met {
		if !slices.ContainsFunc(old, func(o eviction.Met) bool { return o.Threshold == m.Threshold }) {
			e.log.Warn("the node is short of something", "what", m.String())
		}
	}
	if before, _ := e.agent.node.pressure.get(); e.agent.node.pressure.set(v.Conditions) {
		e.agent.node.tellPressure(before, v.Conditions)
		e.log.Info("the node's conditions changed", "conditions", fmt.Sprint(v.Conditions))
		e.agent.do(ctx, func(context.Context) {
			for _, w := range e.agent.workers {
				w.poke() // it may start, or may not
			}
		})
	}
	for s := range e.spared {
		e.spared[s] = slices.ContainsFunc(v.Met, func(m eviction.Met) bool { return m.Signal == s })
	}
	return v
}

// findImages asks the runtime, until it tells, where it keeps images.
func (e *evictor) findImages(ctx context.Context) {
	if e.host.ImageFs != "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, e.agent.node.limits.look)
	defer cancel()
	info, err := e.agent.cfg.Runtime.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err == nil && len(info.ImageFilesystems) > 0 {
		e.host.ImageFs = info.ImageFilesystems[0].GetFsId().GetMountpoint()
	}
}

// problems is what the node is short of.
func (e *evictor) problems() (list []client.Problem) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range e.met {
		list = append(list, client.Problem{Source: "node", Message: m.String(), Since: m.Since})
	}
	return list
}

// reclaim removes images or else evicts a pod, and tells whether it did.
func (e *evictor) reclaim(ctx context.Context, m eviction.Met) bool {
	if m.Spares {
		if !e.spared[m.Signal] {
			e.spared[m.Signal] = true
			if err := e.agent.images.Collect(ctx); err != nil {
				e.log.Error("images not collected", "error", err)
			}
		}
		return false
	}
	e.agent.node.events.AddNode(corev1.EventTypeWarning, "EvictionThresholdMet", "Attempting to reclaim "+string(m.Signal.Resource()))
	layout := eviction.Host{OwnImageFs: e.host.OwnImageFs()}
	image := m.Signal == eviction.ImageFsAvailable || m.Signal == eviction.ImageFsInodes
	if m.Signal.Disk() && (image || !layout.OwnImageFs) {
		freed, err := e.agent.images.Purge(ctx)
		if err != nil {
			e.log.Error("images not collected", "error", err)
		}
		if freed > 0 {
			return true // look whether it was enough
		}
	}
	if _, since := e.agent.node.pressure.get(); m.Signal.Disk() && time.Since(since) < alarmPeriod {
		return true // dead containers are just being removed
	}
	pods, err := e.usage(ctx, e.active(), m.Signal.Disk())
	if err != nil {
		e.log.Warn("what pods use is not known for certain", "error", err)
	}
	ranked := layout.Rank(m.Signal, pods)
	if len(ranked) == 0 {
		return false
	}
	grace := hardGrace
	if m.Soft {
		grace = e.watch.MaxPodGrace
	}
	return e.evict(ctx, ranked[0].Pod, order{signal: m.Signal, message: layout.Message(m, ranked[0]), grace: grace, disk: m.Signal.Disk()})
}

// evict ends a pod and waits until what it used is free.
func (e *evictor) evict(ctx context.Context, pod *corev1.Pod, o order) bool {
	o.ended = make(chan struct{})
	found := false
	err := e.agent.do(ctx, func(context.Context) {
		var w *worker
		if w, found = e.agent.workers[string(pod.UID)]; found {
			w.evict(o)
		}
	})
	if err != nil || !found {
		return false
	}
	patience := time.NewTimer(min(o.grace, time.Duration(*pod.Spec.TerminationGracePeriodSeconds)*time.Second) + endTimeout)
	defer patience.Stop()
	select {
	case <-o.ended:
	case <-patience.C:
		e.log.Warn("an evicted pod does not end", "pod", pod.Namespace+"/"+pod.Name)
	case <-ctx.Done():
	}
	return true
}

// active are the pods that may be evicted.
func (e *evictor) active() (pods []*corev1.Pod) {
	for _, p := range e.agent.board.list() {
		over := p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded || p.DeletionTimestamp != nil ||
			slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget })
		if !over {
			pods = append(pods, p)
		}
	}
	return pods
}

// overLimit evicts a pod that uses more of the disk than its own limits allow.
func (e *evictor) overLimit(ctx context.Context) bool {
	var limited []*corev1.Pod
	var ids []string
	for _, p := range e.active() {
		if any, _ := eviction.Limited(p); any && !eviction.Critical(p) {
			limited = append(limited, p)
			ids = append(ids, string(p.UID))
		}
	}
	if len(limited) == 0 {
		return false
	}
	now, who, full := time.Now(), strings.Join(ids, " "), pressure.Used(e.host.NodeFs, e.agent.cfg.PodLogsDir, e.host.ImageFs)
	if !e.pace.Due(now, who, full) {
		return false
	}
	pods, err := e.usage(ctx, limited, true)
	if err != nil {
		e.log.Warn("what pods put on disk is not known for certain", "error", err)
	}
	least := int64(1 << 62)
	for _, u := range pods {
		limit, message, left := eviction.Exceeds(u)
		if message != "" {
			_, containers := eviction.Limited(u.Pod)
			return e.evict(ctx, u.Pod, order{signal: limit, message: message, grace: hardGrace, disk: containers})
		}
		least = min(least, left)
	}
	e.pace.Measured(now, who, full, least)
	return false
}
