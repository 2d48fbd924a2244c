package device

import (
	"maps"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Apply puts what plugins said into a container's configuration. What the
// container itself defines goes before their environment.
func Apply(config *runtimeapi.ContainerConfig, grants map[string]Grant) {
	defined, cdi := map[string]bool{}, map[string]bool{}
	for _, e := range config.Envs {
		defined[e.Key] = true
	}
	for _, d := range config.CDIDevices {
		cdi[d.Name] = true
	}
	for _, resource := range slices.Sorted(maps.Keys(grants)) {
		r := grants[resource].Response
		for _, key := range slices.Sorted(maps.Keys(r.GetEnvs())) {
			if !defined[key] {
				defined[key] = true
				config.Envs = append(config.Envs, &runtimeapi.KeyValue{Key: key, Value: []byte(r.Envs[key])})
			}
		}
		for _, m := range r.GetMounts() {
			config.Mounts = append(config.Mounts, &runtimeapi.Mount{ContainerPath: m.ContainerPath, HostPath: m.HostPath, Readonly: m.ReadOnly})
		}
		for _, d := range r.GetDevices() {
			config.Devices = append(config.Devices, &runtimeapi.Device{ContainerPath: d.ContainerPath, HostPath: d.HostPath, Permissions: d.Permissions})
		}
		for key, value := range r.GetAnnotations() {
			if config.Annotations == nil {
				config.Annotations = map[string]string{}
			}
			if _, ours := config.Annotations[key]; !ours {
				config.Annotations[key] = value
			}
		}
		for _, d := range r.GetCdiDevices() {
			if !cdi[d.Name] {
				cdi[d.Name] = true
				config.CDIDevices = append(config.CDIDevices, &runtimeapi.CDIDevice{Name: d.Name})
			}
		}
	}
}
