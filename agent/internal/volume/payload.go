package volume

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/env"
)

// file is one file of a volume; mode 0 takes the volume's.
type file struct {
	data []byte
	mode int32
}

// payload collects the files of a volume that shows objects: path → file.
func payload(pod *corev1.Pod, v *corev1.Volume, objs env.Objects, facts env.Facts) (files map[string]file, mode int32, err error) {
	files = map[string]file{}
	switch {
	case v.ConfigMap != nil:
		s := v.ConfigMap
		return files, *s.DefaultMode, addConfigMap(files, pod, s.Name, s.Items, s.Optional, objs)
	case v.Secret != nil:
		s := v.Secret
		return files, *s.DefaultMode, addSecret(files, pod, s.SecretName, s.Items, s.Optional, objs)
	case v.DownwardAPI != nil:
		return files, *v.DownwardAPI.DefaultMode, addDownward(files, pod, v.DownwardAPI.Items, facts)
	case v.Projected != nil:
		for _, src := range v.Projected.Sources {
			switch {
			case src.ConfigMap != nil:
				err = addConfigMap(files, pod, src.ConfigMap.Name, src.ConfigMap.Items, src.ConfigMap.Optional, objs)
			case src.Secret != nil:
				err = addSecret(files, pod, src.Secret.Name, src.Secret.Items, src.Secret.Optional, objs)
			case src.DownwardAPI != nil:
				err = addDownward(files, pod, src.DownwardAPI.Items, facts)
			}
			if err != nil {
				return nil, 0, err
			}
		}
		return files, *v.Projected.DefaultMode, nil
	}
	return nil, 0, fmt.Errorf("volume %s: this kind is not supported", v.Name)
}

func addConfigMap(files map[string]file, pod *corev1.Pod, name string, items []corev1.KeyToPath, optional *bool, objs env.Objects) error {
	m := objs.ConfigMap(pod.Namespace, name)
	if m == nil {
		if optional != nil && *optional {
			return nil
		}
		return fmt.Errorf("configmap %q not found", name)
	}
	data := map[string][]byte{}
	for k, v := range m.Data {
		data[k] = []byte(v)
	}
	for k, v := range m.BinaryData {
		data[k] = v
	}
	return add(files, data, items, optional, "configmap", name)
}

func addSecret(files map[string]file, pod *corev1.Pod, name string, items []corev1.KeyToPath, optional *bool, objs env.Objects) error {
	s := objs.Secret(pod.Namespace, name)
	if s == nil {
		if optional != nil && *optional {
			return nil
		}
		return fmt.Errorf("secret %q not found", name)
	}
	return add(files, s.Data, items, optional, "secret", name)
}

// add adds all keys, or those that items choose.
func add(files map[string]file, data map[string][]byte, items []corev1.KeyToPath, optional *bool, kind, name string) error {
	if len(items) == 0 {
		for k, v := range data {
			files[k] = file{data: v}
		}
		return nil
	}
	for _, it := range items {
		v, ok := data[it.Key]
		if !ok {
			if optional != nil && *optional {
				continue
			}
			return fmt.Errorf("%s %q has no key %q", kind, name, it.Key)
		}
		f := file{data: v}
		if it.Mode != nil {
			f.mode = *it.Mode
		}
		files[it.Path] = f
	}
	return nil
}

func addDownward(files map[string]file, pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile, facts env.Facts) error {
	for _, it := range items {
		var value string
		var err error
		if it.FieldRef != nil {
			value, err = env.Field(pod, facts, it.FieldRef.FieldPath)
		} else {
			value, err = env.Resource(pod, facts, "", it.ResourceFieldRef)
		}
		if err != nil {
			return err
		}
		f := file{data: []byte(value)}
		if it.Mode != nil {
			f.mode = *it.Mode
		}
		files[it.Path] = f
	}
	return nil
}
