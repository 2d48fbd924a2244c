package oci

import (
	"context"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/oci/hook"
	"podstead/oci/launch"
	"podstead/oci/netdevice"
)

// hooksAt moves network devices and runs the hooks whose moment has come, while
// the container's process waits.
func (c *container) hooksAt(ctx context.Context, spec *specs.Spec, child *launch.Child, at launch.Point) error {
	h := spec.Hooks
	if at == launch.PointCreated && len(spec.Linux.NetDevices) > 0 {
		if err := netdevice.Move(spec.Linux.NetDevices, fmt.Sprintf("/proc/%d/ns/net", child.Pid)); err != nil {
			return err
		}
	}
	if h == nil {
		return nil
	}
	if at == launch.PointStart {
		return hook.Inside(ctx, spec, "startContainer", h.StartContainer, child.Pid, c.state(specs.StateCreated))
	}
	// The nodes are made. Hooks of device vendors let more devices in, which a
	// later change of the rules would take back.
	if c.runtime.privilege == privileged {
		if err := c.group().Set(&specs.LinuxResources{Devices: deviceRules(spec)}); err != nil {
			return err
		}
		c.devicesSet = true
	}
	state := c.state(specs.StateCreated) // as runtime-spec has it after step 2 of the lifecycle
	state.Pid = child.Pid
	//nolint:staticcheck // prestart is deprecated, but widely used
	if err := hook.Run(ctx, "prestart", h.Prestart, state); err != nil {
		return err
	}
	if err := hook.Run(ctx, "createRuntime", h.CreateRuntime, state); err != nil {
		return err
	}
	return hook.Inside(ctx, spec, "createContainer", h.CreateContainer, child.Pid, c.state(specs.StateCreated))
}
