package docker

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	cdispecs "tags.cncf.io/container-device-interface/specs-go"

	"podstead/engine/internal/cdi"
)

// findDevices translates devices that are asked for by name: what their files say
// is put into the request. Where Docker has no words for it, a Docker Engine that
// knows CDI is told the names; it hears of an unknown one only at the start, and
// its exec'd processes do not get the variables.
func (r *Runtime) findDevices(ctx context.Context, k *creation) error {
	names, err := cdi.Asked(k.config)
	if err != nil || len(names) == 0 {
		return err
	}
	edits, err := r.cdi.Edits(names)
	if err != nil {
		return err
	}
	missing := missingWord(edits)
	if missing != "" && len(r.info().CDISpecDirs) > 0 {
		k.requests = append(k.requests, container.DeviceRequest{Driver: "cdi", DeviceIDs: names})
		return nil
	}
	if missing != "" {
		return invalid("CDI devices %s: %s is possible with Docker 25 and newer, with its feature cdi", strings.Join(names, ", "), missing)
	}
	if err := r.edit(ctx, k, edits); err != nil {
		return fmt.Errorf("CDI devices %s: %w", strings.Join(names, ", "), err)
	}
	return nil
}

// missingWord is what a device's file says and a request to Docker cannot, "" if
// there is no such thing.
func missingWord(e *cdispecs.ContainerEdits) string {
	switch {
	case len(e.Hooks) > 0:
		return "the hook " + e.Hooks[0].Path
	case len(e.NetDevices) > 0:
		return "the network device " + e.NetDevices[0].HostInterfaceName
	case e.IntelRdt != nil:
		return "intelRdt"
	}
	for _, n := range e.DeviceNodes {
		if n.UID != nil || n.GID != nil || n.FileMode != nil {
			return "an owner or mode of " + n.Path
		}
	}
	for _, m := range e.Mounts {
		if _, err := bindOf(m); err != nil {
			return fmt.Sprintf("the mount %s (%v)", m.ContainerPath, err)
		}
	}
	return ""
}

func (r *Runtime) edit(ctx context.Context, k *creation, e *cdispecs.ContainerEdits) error {
	k.env = append(k.env, e.Env...)
	for _, g := range e.AdditionalGIDs {
		k.groups = append(k.groups, strconv.FormatUint(uint64(g), 10))
	}
	for _, n := range e.DeviceNodes {
		d := container.DeviceMapping{PathOnHost: n.HostPath, PathInContainer: n.Path, CgroupPermissions: n.Permissions}
		if d.PathOnHost == "" {
			d.PathOnHost = n.Path
		}
		if d.CgroupPermissions == "" {
			d.CgroupPermissions = "rwm"
		}
		k.devices = append(k.devices, d)
	}
	for i, m := range e.Mounts {
		bind, err := bindOf(m)
		if err == nil {
			err = r.findMount(ctx, k, len(k.config.Mounts)+i, bind)
		}
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.ContainerPath, err)
		}
	}
	return nil
}

// bindOf translates a mount of a CDI file.
func bindOf(m *cdispecs.Mount) (*runtimeapi.Mount, error) {
	if m.Type != "" && m.Type != "bind" && m.Type != "none" {
		return nil, invalid("the type %q is not possible on Docker", m.Type)
	}
	out := &runtimeapi.Mount{HostPath: m.HostPath, ContainerPath: m.ContainerPath}
	for _, o := range m.Options {
		switch {
		case o == "ro":
			out.Readonly = true
		case mountOptions[o] != 0:
			out.MountOptions = append(out.MountOptions, o)
		case !slices.Contains([]string{"bind", "rbind", "rw", "private", "rprivate"}, o):
			return nil, invalid("the option %q is not possible on Docker", o)
		}
	}
	return out, nil
}
