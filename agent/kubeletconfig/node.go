package kubeletconfig

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	kubelet "k8s.io/kubelet/config/v1beta1"

	"podstead/agent"
)

// node is how much of the node is for pods.
func node(r *agent.Reservations, c *kubelet.KubeletConfiguration) error {
	var errs []error
	add := func(err error) { errs = append(errs, err) }
	if c.MaxPods != 0 {
		r.MaxPods = int(c.MaxPods)
	}
	r.PodsPerCore = int(c.PodsPerCore)
	if r.MaxPods < 0 {
		add(fmt.Errorf("maxPods: %d is negative", r.MaxPods))
	}
	if r.PodsPerCore < 0 {
		add(fmt.Errorf("podsPerCore: %d is negative", r.PodsPerCore))
	}
	var err error
	r.System, err = reservation("systemReserved", c.SystemReserved)
	add(err)
	r.Kube, err = reservation("kubeReserved", c.KubeReserved)
	add(err)
	if c.ReservedSystemCPUs != "" {
		cpus, err := reservedCPUs(c)
		add(err)
		// They stand for what the other fields reserve of cpu.
		delete(r.System, corev1.ResourceCPU)
		r.Kube = maps.Clone(r.Kube)
		if r.Kube == nil {
			r.Kube = corev1.ResourceList{}
		}
		r.Kube[corev1.ResourceCPU] = *resource.NewQuantity(int64(len(cpus)), resource.DecimalSI)
	}
	r.SystemCgroup, r.KubeCgroup = c.SystemReservedCgroup, c.KubeReservedCgroup
	if c.CgroupRoot != "" && path.Clean("/"+c.CgroupRoot) != path.Join("/", c.CgroupRoot) {
		add(fmt.Errorf("cgroupRoot: %q is no path", c.CgroupRoot))
	}
	if c.EnforceNodeAllocatable != nil {
		add(enforce(r, c.EnforceNodeAllocatable))
	}
	return errors.Join(errs...)
}

// systemGroups checks the groups of programs that are no pods.
func systemGroups(c *kubelet.KubeletConfiguration) error {
	var errs []error
	for field, name := range map[string]string{"kubeletCgroups": c.KubeletCgroups, "systemCgroups": c.SystemCgroups} {
		if name != "" && (path.Clean("/"+name) == "/" || slices.Contains(strings.Split(name, "/"), "..")) {
			errs = append(errs, fmt.Errorf("%s: %q is no path of a group below the root", field, name))
		}
	}
	if c.SystemCgroups != "" && c.CgroupRoot == "" {
		errs = append(errs, errors.New("systemCgroups: cgroupRoot has to be set, too"))
	}
	return errors.Join(errs...)
}

func enforce(r *agent.Reservations, keys []string) error {
	const field = "enforceNodeAllocatable"
	r.EnforcePods = false
	raise := func(to *agent.Enforcement, e agent.Enforcement, cgroup, where string) error {
		if cgroup == "" {
			return fmt.Errorf("%s: %s has to be set, too", field, where)
		}
		if *to != agent.EnforceNone {
			return fmt.Errorf("%s: all of a reservation or what is compressible, not both", field)
		}
		*to = e
		return nil
	}
	for _, key := range keys {
		var err error
		switch key {
		case "none", "":
			if len(keys) > 1 {
				err = fmt.Errorf("%s: %q goes with nothing else", field, key)
			}
		case "pods":
			r.EnforcePods = true
		case "system-reserved":
			err = raise(&r.EnforceSystem, agent.EnforceAll, r.SystemCgroup, "systemReservedCgroup")
		case "system-reserved-compressible":
			err = raise(&r.EnforceSystem, agent.EnforceCompressible, r.SystemCgroup, "systemReservedCgroup")
		case "kube-reserved":
			err = raise(&r.EnforceKube, agent.EnforceAll, r.KubeCgroup, "kubeReservedCgroup")
		case "kube-reserved-compressible":
			err = raise(&r.EnforceKube, agent.EnforceCompressible, r.KubeCgroup, "kubeReservedCgroup")
		default:
			err = fmt.Errorf("%s: there is no %q", field, key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func reservation(field string, from map[string]string) (corev1.ResourceList, error) {
	if len(from) == 0 {
		return nil, nil
	}
	out := corev1.ResourceList{}
	for _, name := range slices.Sorted(maps.Keys(from)) {
		at := field + "[" + name + "]"
		if !slices.Contains([]string{"cpu", "memory", "ephemeral-storage", "pid"}, name) {
			return nil, fmt.Errorf("%s: cpu, memory, ephemeral-storage and pid can be reserved", at)
		}
		q, err := resource.ParseQuantity(from[name])
		if err != nil || q.Sign() < 0 {
			return nil, fmt.Errorf("%s: %q is no quantity, or negative", at, from[name])
		}
		out[corev1.ResourceName(name)] = q
	}
	return out, nil
}
