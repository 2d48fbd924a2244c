// Package cdi gives containers devices by name, as the Container Device
// Interface has it: vendors describe their devices in files of the CDI
// directories, and what such a file says (device nodes, mounts, environment,
// hooks, groups) is applied to the OCI specification of a container that asks
// for the device. The files are the administrator's and are trusted; names come
// from the CRI request alone.
//
// A Registry is called by the engine, for each container that asks for devices.
// It keeps nothing but what it has read; the directories are looked at each
// time they are needed, so that a file that was written before a request is
// seen by it, and read again when they have changed.
package cdi

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
	cdispecs "tags.cncf.io/container-device-interface/specs-go"

	"podstead/cri"
)

// Asked returns the names of the devices that a container asks for, each once:
// those of CDI_devices, then those of the cdi.k8s.io annotations, which were
// the way before there was a field.
func Asked(c *runtimeapi.ContainerConfig) ([]string, error) {
	var names []string
	add := func(field, name string) error {
		if _, _, _, err := parser.ParseQualifiedName(name); err != nil {
			return cri.Errorf(codes.InvalidArgument, "%s: %q is no name of a CDI device (vendor/class=name): %v", field, name, err)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		return nil
	}
	for i, d := range c.GetCDIDevices() {
		if err := add(fmt.Sprintf("config.CDI_devices[%d].name", i), d.GetName()); err != nil {
			return nil, err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(c.GetAnnotations())) {
		if !strings.HasPrefix(key, cdi.AnnotationPrefix) {
			continue
		}
		for name := range strings.SplitSeq(c.Annotations[key], ",") {
			if err := add(fmt.Sprintf("config.annotations[%q]", key), name); err != nil {
				return nil, err
			}
		}
	}
	return names, nil
}

// Inject gives a container devices, by name. After an error the specification
// must not be used.
func (r *Registry) Inject(s *specs.Spec, names []string) error {
	if len(names) == 0 {
		return nil
	}
	edits, err := r.edits(names)
	if err != nil {
		return err
	}
	rules := 0
	if s.Linux != nil && s.Linux.Resources != nil {
		rules = len(s.Linux.Resources.Devices)
	}
	if err := edits.Apply(s); err != nil {
		return cri.Errorf(codes.FailedPrecondition, "CDI devices %s: %v", strings.Join(names, ", "), err)
	}
	if s.Linux != nil && s.Linux.Resources != nil {
		s.Linux.Resources.Devices = withoutEmpty(s.Linux.Resources.Devices, rules)
	}
	return nil
}

// Edits is what the devices' files say, for one who has no OCI specification.
func (r *Registry) Edits(names []string) (*cdispecs.ContainerEdits, error) {
	edits, err := r.edits(names)
	if err != nil {
		return nil, err
	}
	return edits.ContainerEdits, nil
}

// edits collects what the devices' files say: what is common to a file once,
// and then what is the device's own. The device nodes are copies, because
// applying them fills in what the host says of them.
func (r *Registry) edits(names []string) (*cdi.ContainerEdits, error) {
	devices, err := r.find(names)
	if err != nil {
		return nil, err
	}
	all := &cdi.ContainerEdits{ContainerEdits: &cdispecs.ContainerEdits{}}
	seen := map[*cdi.Spec]bool{}
	for _, d := range devices {
		if file := d.GetSpec(); !seen[file] {
			seen[file] = true
			all.Append(&cdi.ContainerEdits{ContainerEdits: &file.ContainerEdits})
		}
		all.Append(&cdi.ContainerEdits{ContainerEdits: &d.ContainerEdits})
	}
	for i, n := range all.DeviceNodes {
		all.DeviceNodes[i] = new(*n)
	}
	for i, m := range all.Mounts {
		all.Mounts[i] = bindByDefault(*m)
	}
	return all, nil
}

// bindByDefault makes a bind mount of one that names no type: a CDI mount has a
// path of the host for a source.
func bindByDefault(m cdispecs.Mount) *cdispecs.Mount {
	m.Options = slices.Clone(m.Options)
	if m.Type == "" {
		m.Type = "bind"
		if !slices.Contains(m.Options, "bind") && !slices.Contains(m.Options, "rbind") {
			m.Options = append(m.Options, "rbind")
		}
	}
	return &m
}

// withoutEmpty leaves out the rules from the given index on that allow nothing,
// those of nodes with the permissions "none": a rule without access would be
// taken for one of all access.
func withoutEmpty(rules []specs.LinuxDeviceCgroup, from int) []specs.LinuxDeviceCgroup {
	kept := slices.Clone(rules[:from])
	for _, rule := range rules[from:] {
		if rule.Access != "" {
			kept = append(kept, rule)
		}
	}
	return kept
}
