package kubeletconfig

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	kubelet "k8s.io/kubelet/config/v1beta1"

	"podstead/agent"
	"podstead/agent/internal/numa"
)

// pinning is what containers get of the machine for themselves.
func pinning(p *agent.Pinning, c *kubelet.KubeletConfiguration) error {
	switch c.CPUManagerPolicy {
	case "", "none":
	case "static":
		p.Static = true
	default:
		return fmt.Errorf("cpuManagerPolicy: %q is neither none nor static", c.CPUManagerPolicy)
	}
	if d := c.CPUManagerReconcilePeriod.Duration; d < 0 {
		return fmt.Errorf("cpuManagerReconcilePeriod: %s is negative", d)
	} else if d > 0 {
		p.Period = d
	}
	var err error
	if p.Reserved, err = reservedCPUs(c); err != nil {
		return nil // said already
	}
	return errors.Join(cpuOptions(p, c), topology(p, c), memory(p, c))
}

// topology is how close to each other what a container gets has to be.
func topology(p *agent.Pinning, c *kubelet.KubeletConfiguration) error {
	switch policy := numa.Policy(c.TopologyManagerPolicy); policy {
	case "":
	case numa.None, numa.BestEffort, numa.Restricted, numa.SingleNode:
		p.Topology.Policy = policy
	default:
		return fmt.Errorf("topologyManagerPolicy: %q is none of none, best-effort, restricted, single-numa-node", policy)
	}
	switch c.TopologyManagerScope {
	case "", "container":
	case "pod":
		p.PodScope = true
	default:
		return fmt.Errorf("topologyManagerScope: %q is neither container nor pod", c.TopologyManagerScope)
	}
	const field = "topologyManagerPolicyOptions"
	for _, name := range slices.Sorted(maps.Keys(c.TopologyManagerPolicyOptions)) {
		value := c.TopologyManagerPolicyOptions[name]
		var err error
		switch name {
		case "prefer-closest-numa-nodes":
			p.Topology.Closest, err = strconv.ParseBool(value)
		case "max-allowable-numa-nodes":
			if p.MaxNodes, err = strconv.Atoi(value); err == nil && (p.MaxNodes < 8 || p.MaxNodes > 16) {
				err = errors.New("") // hints are of all sets of nodes
			}
		default:
			return fmt.Errorf("%s[%s]: there is no such option", field, name)
		}
		if err != nil {
			return fmt.Errorf("%s[%s]: %q is not true, false, or a number between 8 and 16", field, name, value)
		}
	}
	return nil
}

// memory is what containers get of it for themselves. As much has to be reserved of the
// nodes together as no pod may have.
func memory(p *agent.Pinning, c *kubelet.KubeletConfiguration) error {
	switch c.MemoryManagerPolicy {
	case "", "None":
	case "Static":
		p.StaticMemory = true
	default:
		return fmt.Errorf("memoryManagerPolicy: %q is neither None nor Static", c.MemoryManagerPolicy)
	}
	for i, r := range c.ReservedMemory {
		id := int(r.NumaNode)
		if p.ReservedMemory == nil {
			p.ReservedMemory = map[int]map[string]uint64{}
		}
		if p.ReservedMemory[id] != nil {
			return fmt.Errorf("reservedMemory[%d].numaNode: node %d is there twice", i, id)
		}
		p.ReservedMemory[id] = map[string]uint64{}
		for _, name := range slices.Sorted(maps.Keys(r.Limits)) {
			q := r.Limits[name]
			at := fmt.Sprintf("reservedMemory[%d].limits[%s]", i, name)
			if name != corev1.ResourceMemory && !strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) {
				return fmt.Errorf("%s: memory and huge pages can be reserved", at)
			}
			if q.Sign() <= 0 {
				return fmt.Errorf("%s: %s is not more than 0", at, q.String())
			}
			p.ReservedMemory[id][string(name)] = uint64(q.Value())
		}
	}
	if len(c.ReservedMemory) > 0 && !p.StaticMemory {
		return errors.New("reservedMemory: it is of memoryManagerPolicy: Static")
	}
	return nil
}

func reservedCPUs(c *kubelet.KubeletConfiguration) (numa.CPUs, error) {
	cpus, err := numa.Parse(c.ReservedSystemCPUs)
	if err != nil {
		return nil, fmt.Errorf("reservedSystemCPUs: %w", err)
	}
	return cpus, nil
}

// cpuOptions reads the options of the static CPU policy and what they exclude.
func cpuOptions(p *agent.Pinning, c *kubelet.KubeletConfiguration) error {
	const field = "cpuManagerPolicyOptions"
	if len(c.CPUManagerPolicyOptions) > 0 && !p.Static {
		return errors.New(field + ": they are of cpuManagerPolicy: static")
	}
	o := &p.Options
	known := map[string]*bool{
		"full-pcpus-only": &o.FullCores, "strict-cpu-reservation": &o.StrictReservation, "prefer-align-cpus-by-uncorecache": &o.ByCache,
		"distribute-cpus-across-numa": &o.SpreadNodes, "align-by-socket": &o.AlignBySocket, "distribute-cpus-across-cores": &o.SpreadCores,
	}
	for _, name := range slices.Sorted(maps.Keys(c.CPUManagerPolicyOptions)) {
		to := known[name]
		if to == nil {
			return fmt.Errorf("%s[%s]: there is no such option", field, name)
		}
		yes, err := strconv.ParseBool(c.CPUManagerPolicyOptions[name])
		if err != nil {
			return fmt.Errorf("%s[%s]: %q is neither true nor false", field, name, c.CPUManagerPolicyOptions[name])
		}
		*to = yes
	}
	switch {
	case o.FullCores && o.SpreadCores:
		return errors.New(field + ": full-pcpus-only and distribute-cpus-across-cores exclude each other")
	case o.SpreadNodes && o.SpreadCores:
		return errors.New(field + ": distribute-cpus-across-numa and distribute-cpus-across-cores exclude each other")
	case o.ByCache && (o.SpreadCores || o.SpreadNodes):
		return errors.New(field + ": prefer-align-cpus-by-uncorecache excludes distribute-cpus-across-cores and distribute-cpus-across-numa")
	case o.AlignBySocket && c.TopologyManagerPolicy == "single-numa-node":
		return errors.New(field + ": align-by-socket and topologyManagerPolicy: single-numa-node exclude each other")
	}
	return nil
}
