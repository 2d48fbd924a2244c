package agent

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/eviction"
	"podstead/agent/internal/logind"
	"podstead/agent/internal/plan"
)

// ShutdownTier is how long the pods from a priority on, up to the next tier's,
// get to end before the machine goes down.
type ShutdownTier struct {
	Priority int32
	Grace    time.Duration
}

const (
	nodeShutdown        = "NodeShutdown"
	shutdownReason      = "Terminated"
	shutdownMessage     = "Pod was terminated in response to imminent node shutdown."
	shutdownHoldMessage = "Pod was rejected as the node is shutting down."
)

// tiers are those of the policy, those of the least priority first; without any,
// the critical pods end after the others, and all by their own grace periods.
func (a *Agent) tiers() []ShutdownTier {
	list := slices.Clone(a.cfg.Policy.Shutdown)
	if len(list) == 0 {
		const own = 1 << 62
		list = []ShutdownTier{{0, own}, {eviction.SystemCritical, own}}
	}
	slices.SortFunc(list, func(x, y ShutdownTier) int { return cmp.Compare(x.Priority, y.Priority) })
	return list
}

// tierOf is the index of a pod's tier; the first has all that are below it, too.
func tierOf(tiers []ShutdownTier, pod *corev1.Pod) int {
	i := 0
	for j, t := range tiers {
		if priority(pod) >= t.Priority {
			i = j
		}
	}
	return i
}

// shutdownFile remembers, until the machine has gone down, that it is about to.
func (a *Agent) shutdownFile() string { return filepath.Join(a.cfg.RunDir, "shutdown") }

// watchShutdown waits for the machine's going down, if that is to be held up.
func (a *Agent) watchShutdown(ctx context.Context) {
	if len(a.cfg.Policy.Shutdown) == 0 {
		return
	}
	need := time.Duration(0)
	for _, t := range a.cfg.Policy.Shutdown {
		need += t.Grace
	}
	up := func(ctx context.Context) {
		if err := a.shutdownCancel(ctx); err != nil {
			a.cfg.Log.Error("pods do not begin again", "error", err)
		}
	}
	down := func(ctx context.Context) {
		if err := a.shutdown(ctx); err != nil {
			a.cfg.Log.Error("not all pods have ended before the machine goes down", "error", err)
		}
	}
	if err := logind.Watch(ctx, need, down, up, a.cfg.Log); err != nil && ctx.Err() == nil {
		a.cfg.Log.Warn("a shutdown of the machine is not held up for pods; `podstead shutdown` ends them", "error", err)
	}
}

// shutdown ends all pods, tier by tier, and starts none any more. They begin
// again after a reboot, or when the shutdown is cancelled.
func (a *Agent) shutdown(ctx context.Context) error {
	a.node.down.Store(true)
	if err := a.markDown(); err != nil {
		a.cfg.Log.Warn("an agent that starts now would start pods", "error", err)
	}
	a.cfg.Log.Info("the machine goes down, pods end")
	a.node.events.AddNode(corev1.EventTypeNormal, "Shutdown", "Shutdown manager detected shutdown event")
	a.node.metrics.Shutdown(false)
	defer a.node.metrics.Shutdown(true)
	tiers := a.tiers()
	groups := make([][]*corev1.Pod, len(tiers))
	for _, pod := range a.board.list() {
		i := tierOf(tiers, pod)
		groups[i] = append(groups[i], pod)
	}
	for i, t := range tiers {
		if err := a.endTier(ctx, groups[i], t.Grace); err != nil {
			return err
		}
	}
	return nil
}

// endTier ends pods and waits for that, at most as long as they have.
func (a *Agent) endTier(ctx context.Context, pods []*corev1.Pod, grace time.Duration) error {
	var ends []chan struct{}
	patience := time.Duration(0)
	err := a.do(ctx, func(context.Context) {
		for _, pod := range pods {
			w := a.workers[string(pod.UID)]
			if w == nil {
				continue
			}
			ended := make(chan struct{})
			ends = append(ends, ended)
			patience = max(patience, min(grace, time.Duration(*pod.Spec.TerminationGracePeriodSeconds)*time.Second+endTimeout))
			w.evict(order{reason: shutdownReason, message: shutdownMessage, grace: grace, ended: ended})
		}
	})
	if err != nil {
		return err
	}
	timer := time.NewTimer(patience + plan.MinGrace)
	defer timer.Stop()
	for _, ended := range ends {
		select {
		case <-ended:
		case <-timer.C:
			a.cfg.Log.Warn("pods do not end before the machine goes down", "grace", patience)
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (a *Agent) markDown() error {
	if a.cfg.RunDir == "" {
		return nil
	}
	return os.WriteFile(a.shutdownFile(), nil, 0o600)
}

// wasDown tells whether an agent before this one was told of a shutdown that has
// not come yet.
func (a *Agent) wasDown() bool {
	_, err := os.Stat(a.shutdownFile())
	return a.cfg.RunDir != "" && err == nil
}

// shutdownCancel lets pods begin again.
func (a *Agent) shutdownCancel(ctx context.Context) error {
	if err := os.Remove(a.shutdownFile()); a.cfg.RunDir != "" && err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	a.node.down.Store(false)
	return a.do(ctx, func(context.Context) {
		for _, w := range a.workers {
			w.leave(func(b *box) { b.resume = true })
		}
	})
}

// resume begins anew what ended for a shutdown that did not come, and was not deleted
// meanwhile.
func (w *worker) resume() {
	if w.failed == nil || !w.failed.Shutdown || w.node.down.Load() || w.ending != nil && !w.ending.Keep {
		return
	}
	w.failed, w.ending, w.start, w.wasOver, w.set = nil, nil, time.Now(), false, conditions{}
	w.dirty = true // what somebody went on making for an earlier agent may have come since
}
