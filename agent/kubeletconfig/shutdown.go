package kubeletconfig

import (
	"fmt"
	"time"

	kubelet "k8s.io/kubelet/config/v1beta1"

	"podstead/agent"
	"podstead/agent/internal/eviction"
)

// shutdown is how pods end when the machine goes down.
func shutdown(p *agent.Policy, c *kubelet.KubeletConfiguration) error {
	all, critical := c.ShutdownGracePeriod.Duration, c.ShutdownGracePeriodCriticalPods.Duration
	switch {
	case all < 0 || all > 0 && all < time.Second:
		return fmt.Errorf("shutdownGracePeriod: %s is neither 0 nor at least 1s", all)
	case critical < 0 || critical > 0 && critical < time.Second:
		return fmt.Errorf("shutdownGracePeriodCriticalPods: %s is neither 0 nor at least 1s", critical)
	case critical > all:
		return fmt.Errorf("shutdownGracePeriodCriticalPods: %s is more than shutdownGracePeriod, %s", critical, all)
	case all > 0 && len(c.ShutdownGracePeriodByPodPriority) > 0:
		return fmt.Errorf("shutdownGracePeriodByPodPriority: it goes with neither shutdownGracePeriod nor shutdownGracePeriodCriticalPods")
	case all > 0:
		p.Shutdown = []agent.ShutdownTier{{Priority: 0, Grace: all - critical}, {Priority: eviction.SystemCritical, Grace: critical}}
		return nil
	}
	seen := map[int32]bool{}
	for _, t := range c.ShutdownGracePeriodByPodPriority {
		at := fmt.Sprintf("shutdownGracePeriodByPodPriority[%d]", t.Priority)
		if seen[t.Priority] {
			return fmt.Errorf("%s: it stands there twice", at)
		}
		if t.ShutdownGracePeriodSeconds < 0 {
			return fmt.Errorf("%s: %d seconds are negative", at, t.ShutdownGracePeriodSeconds)
		}
		seen[t.Priority] = true
		p.Shutdown = append(p.Shutdown, agent.ShutdownTier{Priority: t.Priority, Grace: time.Duration(t.ShutdownGracePeriodSeconds) * time.Second})
	}
	return nil
}
