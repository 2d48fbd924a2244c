package agent

import (
	"errors"
	"fmt"
	"path"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/request"
)

// reserveAll tells the kernel what the pods of the classes request together: what
// a group is left is never more than what those above it are. Above the tree, that
// is the instance's own group.
func (c *cgroups) reserveAll(pods map[string]*corev1.Pod) error {
	all, burstable := request.Reservations(pods)
	groups := map[string]request.Reservation{c.path(): all, c.path("burstable"): burstable}
	if root := path.Join("/", c.root); !c.systemd && root != "/" {
		groups[root] = all
	}
	var failed []error
	for name, r := range groups {
		g := c.hierarchy.Group(name)
		if err := g.Set(&specs.LinuxResources{Unified: r.Unified()}); err != nil {
			failed = append(failed, fmt.Errorf("cgroup %s: %w", g.Path(), err))
		}
	}
	return errors.Join(failed...)
}

// keepClassesOff bounds the memory of the lower classes, so that they leave what
// the better ones request (the kubelet's qosReserved). No class is bounded below
// what it uses: nothing is to be killed because a pod comes.
func (c *cgroups) keepClassesOff(pods map[string]*corev1.Pod) error {
	guaranteed, burstable := int64(0), int64(0)
	for _, pod := range pods {
		requests := request.Requests(pod)
		switch request.QoS(pod) {
		case corev1.PodQOSGuaranteed:
			guaranteed += requests.Memory().Value()
		case corev1.PodQOSBurstable:
			burstable += requests.Memory().Value()
		}
	}
	forBurstable := c.allocatable - guaranteed/100*int64(c.keepOff)
	return errors.Join(c.atMost("burstable", forBurstable), c.atMost("besteffort", forBurstable-burstable/100*int64(c.keepOff)))
}

func (c *cgroups) atMost(class string, limit int64) error {
	g := c.hierarchy.Group(c.path(class))
	stats, err := g.Stats()
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", g.Path(), err)
	}
	limit = max(limit, int64(stats.MemoryBytes), 1<<20)
	if err := g.Set(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		return fmt.Errorf("cgroup %s: %w", g.Path(), err)
	}
	return nil
}
