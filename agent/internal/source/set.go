package source

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/sys"
)

// Set is everything that is wanted on the node. It is not changed once made.
type Set struct {
	Pods       map[string]*corev1.Pod // by "namespace/name"
	ConfigMaps map[string]*corev1.ConfigMap
	Secrets    map[string]*corev1.Secret
	Claims     map[string]*corev1.PersistentVolumeClaim
	Volumes    map[string]*corev1.PersistentVolume // by name
	bound      map[string]bound                    // by the claim's "namespace/name"
	// Origin tells where a pod comes from: a file's path, or "" for the API.
	Origin map[string]string
	// Warnings of a pod's manifest.
	Warnings map[string][]string
	Problems []Problem
}

// Problem is a manifest that cannot be used, or not in full.
type Problem struct {
	Source  string // file, or "api"
	Message string
	Since   time.Time
	Kept    bool // an earlier version is in force
	Pods    []string
}

// Merge makes a set of all files, in order, and of the applied objects. An
// object that is defined twice is taken from where it stands first; the second
// is a problem, named.
func Merge(files []File, applied []Object) *Set {
	s := &Set{Pods: map[string]*corev1.Pod{}, ConfigMaps: map[string]*corev1.ConfigMap{},
		Secrets: map[string]*corev1.Secret{}, Claims: map[string]*corev1.PersistentVolumeClaim{},
		Volumes: map[string]*corev1.PersistentVolume{}, Origin: map[string]string{}, Warnings: map[string][]string{}}
	owner := map[string]string{}
	add := func(o Object, source, path string) {
		if first, dup := owner[o.Key()]; dup {
			s.Problems = append(s.Problems, Problem{Source: source, Message: fmt.Sprintf("%s is already defined by %s; this definition is not used", o.Key(), first)})
			return
		}
		owner[o.Key()] = source
		s.add(o, path)
	}
	for _, f := range files {
		for _, o := range f.Objects {
			add(o, f.Path, f.Path)
		}
		if f.Err != nil {
			p := Problem{Source: f.Path, Message: f.Err.Error(), Since: f.Since, Kept: len(f.Objects) > 0}
			for _, o := range f.Objects {
				if o.Pod != nil {
					p.Pods = append(p.Pods, PodKey(o.Pod))
				}
			}
			s.Problems = append(s.Problems, p)
		}
	}
	for _, o := range applied {
		add(o, "api", "")
	}
	return s
}

func (s *Set) add(o Object, path string) {
	m := o.Meta()
	key := m.Namespace + "/" + m.Name
	switch {
	case o.Pod != nil:
		s.Pods[key], s.Origin[key], s.Warnings[key] = o.Pod, path, o.Warnings
	case o.ConfigMap != nil:
		s.ConfigMaps[key] = o.ConfigMap
	case o.Secret != nil:
		s.Secrets[key] = o.Secret
	case o.Claim != nil:
		s.Claims[key] = o.Claim
	default:
		s.Volumes[m.Name] = o.Volume
	}
}

// Applied holds the objects that were posted to the API, as files below Dir, so
// that they are there again after a reboot. It is owned by the agent's loop.
type Applied struct {
	Dir     string
	Decoder *Decoder
	objects map[string]Object
}

// Load reads the directory. A bad file is set aside and reported, never fatal.
func (a *Applied) Load() (problems []error) {
	a.objects = map[string]Object{}
	entries, err := os.ReadDir(a.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return []error{err}
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".json" {
			continue
		}
		path := filepath.Join(a.Dir, e.Name())
		data, err := os.ReadFile(path)
		if err == nil {
			var objs []Object
			if objs, _, err = a.Decoder.Decode(data); err == nil {
				for _, o := range objs {
					a.objects[o.Key()] = o
				}
				continue
			}
		}
		problems = append(problems, errors.Join(fmt.Errorf("applied object %s: %w", path, err), os.Rename(path, path+".bad")))
	}
	return problems
}

// Objects returns all, sorted.
func (a *Applied) Objects() []Object {
	keys := slices.Sorted(maps.Keys(a.objects))
	objs := make([]Object, len(keys))
	for i, k := range keys {
		objs[i] = a.objects[k]
	}
	return objs
}

// Get returns the applied object of that kind and name.
func (a *Applied) Get(key string) (Object, bool) {
	o, ok := a.objects[key]
	return o, ok
}

// Put adds or replaces an object; it tells which, or that nothing changed.
func (a *Applied) Put(o Object) (existed, changed bool, err error) {
	old, existed := a.objects[o.Key()]
	if existed && reflect.DeepEqual(payload(old), payload(o)) {
		return true, false, nil
	}
	data, err := json.Marshal(payload(o))
	if err != nil {
		return existed, false, err
	}
	if err := os.MkdirAll(a.Dir, 0o700); err != nil {
		return existed, false, err
	}
	if err := sys.WriteFileAtomic(a.path(o), data, 0o600, true); err != nil {
		return existed, false, fmt.Errorf("keep %s: %w", o.Key(), err)
	}
	a.objects[o.Key()] = o
	return existed, true, nil
}

// Delete removes an object; a missing one is no error.
func (a *Applied) Delete(key string) error {
	o, ok := a.objects[key]
	if !ok {
		return nil
	}
	if err := os.Remove(a.path(o)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	delete(a.objects, key)
	return sys.SyncDir(a.Dir)
}

func (a *Applied) path(o Object) string {
	m := o.Meta()
	return filepath.Join(a.Dir, fmt.Sprintf("%s_%s_%s.json", o.Kind(), m.Namespace, m.Name))
}

// payload is the API object in the form that a manifest has.
func payload(o Object) any {
	kind, object, _ := o.which()
	out := object.DeepCopyObject()
	out.GetObjectKind().SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(kind))
	if pod, ok := out.(*corev1.Pod); ok {
		pod.Spec.NodeName = "" // of the node, not of the manifest
	}
	return out
}

// ConfigMap returns a ConfigMap, nil if there is none.
func (s *Set) ConfigMap(namespace, name string) *corev1.ConfigMap {
	return s.ConfigMaps[namespace+"/"+name]
}

// Secret returns a Secret, nil if there is none.
func (s *Set) Secret(namespace, name string) *corev1.Secret {
	return s.Secrets[namespace+"/"+name]
}
