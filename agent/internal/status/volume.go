package status

import (
	"path"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/observe"
)

// volumeMounts are what a container mounts, as far as more than its definition is
// to be told of it: whether what is read-only is so recursively, and which image
// an image volume is.
func (m maker) volumeMounts(spec *corev1.Container, c *observe.Container) (list []corev1.VolumeMountStatus) {
	made := map[string]observe.Mount{}
	for _, one := range c.Mounts {
		made[one.Path] = one
	}
	images := map[string]bool{}
	for _, v := range m.in.Pod.Spec.Volumes {
		images[v.Name] = v.Image != nil
	}
	for _, v := range spec.VolumeMounts {
		one := made[path.Clean("/"+v.MountPath)]
		s := corev1.VolumeMountStatus{Name: v.Name, MountPath: v.MountPath, ReadOnly: v.ReadOnly}
		if v.ReadOnly {
			mode := corev1.RecursiveReadOnlyDisabled
			if one.Recursive {
				mode = corev1.RecursiveReadOnlyEnabled
			}
			s.RecursiveReadOnly = &mode
		}
		if images[v.Name] && one.Image != "" {
			s.VolumeStatus = &corev1.VolumeStatus{Image: &corev1.ImageVolumeStatus{ImageRef: one.Image}}
		}
		list = append(list, s)
	}
	return list
}
