package kubeletconfig

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

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
	return cpuOptions(p, c)
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
