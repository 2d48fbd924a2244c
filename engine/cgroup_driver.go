package engine

import (
	"fmt"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// With the systemd driver a pod's group is a slice and each container's a scope
// in it. A record holds paths, so that what one driver has made can be removed
// whatever the driver is now.

// cgroupDriver is what RuntimeConfig says.
func (e *Engine) cgroupDriver() runtimeapi.CgroupDriver {
	if e.cfg.Cgroups.Driven() {
		return runtimeapi.CgroupDriver_SYSTEMD
	}
	return runtimeapi.CgroupDriver_CGROUPFS
}

// podCgroup is where a pod's group is: at the request's cgroup_parent, or if that
// is empty at a place of the engine's own.
func (e *Engine) podCgroup(parent, id string) (string, error) {
	switch {
	case parent == "" && e.cfg.Cgroups.Driven():
		// "/podstead-b" holds "podstead_b-ID.slice": dashes are levels.
		own := strings.ReplaceAll(strings.Trim(e.cfg.CgroupParent, "/"), "-", "_")
		parent = strings.ReplaceAll(own, "/", "-") + "-" + id + ".slice"
	case parent == "":
		return e.cfg.CgroupParent + "/" + id, nil
	}
	path, err := e.cfg.Cgroups.UnitPath(parent)
	if err != nil {
		return "", fmt.Errorf("linux.cgroup_parent: %w", err)
	}
	return path, nil
}

// memberCgroup is the group of a container, or of the pause process, of a pod.
func memberCgroup(parent, id string) string {
	if strings.HasSuffix(parent, ".slice") {
		return parent + "/cri-podstead-" + id + ".scope"
	}
	return parent + "/" + id
}

// settle tells the driver that a group's process is there.
func (e *Engine) settle(path string) error {
	return e.cfg.Cgroups.Group(path).Settle()
}
