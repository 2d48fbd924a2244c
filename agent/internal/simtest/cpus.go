package simtest

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// update puts what is not 0 of an update into a container's resources.
func (c *container) update(r *runtimeapi.LinuxContainerResources) {
	old := c.config.Linux.Resources
	if r.CpuShares == 0 && old != nil { // it is of processors alone
		old.CpusetCpus = r.CpusetCpus
		return
	}
	if r.CpusetCpus == "" {
		r.CpusetCpus = old.GetCpusetCpus()
	}
	c.config.Linux.Resources = r
}

// CPUs are what running containers were told to run on, by pod's UID and name.
func (w *World) CPUs() map[[2]string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[[2]string]string{}
	for _, c := range w.sorted() {
		if c.running() {
			out[[2]string{c.sandbox.uid(), c.name()}] = c.config.GetLinux().GetResources().GetCpusetCpus()
		}
	}
	return out
}
