package agent

import (
	"context"

	"podstead/agent/internal/sysgroup"
)

// placeSystem puts the agent and the machine's other programs into their cgroups.
func (a *Agent) placeSystem(ctx context.Context) {
	own, rest := a.cfg.Policy.OwnCgroup, a.cfg.Policy.SystemCgroup
	if own == "" && rest == "" {
		return
	}
	if a.node.cgroups.hierarchy == nil {
		a.cfg.Log.Warn("kubeletCgroups and systemCgroups have no effect: there are no cgroups to be had here")
		return
	}
	groups := sysgroup.Groups{Hierarchy: a.node.cgroups.hierarchy, Own: own, Rest: rest, From: "/", Log: a.cfg.Log}
	a.wg.Go(func() { groups.Keep(ctx) })
}
