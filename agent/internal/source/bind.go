package source

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/ptr"

	"podstead/sys"
)

// Binder finds storage for claims: a PersistentVolume that fits, or, for a claim
// that names no class, a directory of its own below Dir. It remembers what it
// found, in File: a claim keeps its data when other claims and volumes come and
// go, and when it goes itself and comes back. Nothing ever deletes the data. It
// is owned by the agent's loop.
type Binder struct {
	File, Dir string
	bindings  map[string]string // claim "namespace/name" → volume, "" for a directory
}

// bound is where a claim's storage is, or why it has none.
type bound struct {
	storage Storage
	err     error
}

// Storage is where the data of a claim is: exactly one of its fields is set.
type Storage struct {
	HostPath  *corev1.HostPathVolumeSource
	Local     string // a directory that must be there
	Directory string // a directory that is made on demand
	CSI       *corev1.PersistentVolumeSpec
}

// Claim returns the storage of a claim. The error tells what a pod that uses it
// waits for.
func (s *Set) Claim(namespace, name string) (Storage, error) {
	b, ok := s.bound[namespace+"/"+name]
	if !ok {
		return Storage{}, fmt.Errorf("persistentvolumeclaim %q not found", name)
	}
	return b.storage, b.err
}

// Load reads what was bound before. A file that cannot be read is set aside and
// reported: then claims look for storage anew.
func (b *Binder) Load() error {
	b.bindings = map[string]string{}
	data, err := os.ReadFile(b.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(data, &b.bindings)
	}
	if err == nil {
		return nil
	}
	b.bindings = map[string]string{}
	return errors.Join(fmt.Errorf("bindings of claims: %s: %w", b.File, err), os.Rename(b.File, b.File+".bad"))
}

// Bind finds storage for each claim of a set. On an error new bindings are not
// on disk yet; the next call tries again.
func (b *Binder) Bind(s *Set) error {
	next := map[string]string{}
	maps.Copy(next, b.bindings)
	s.bound = map[string]bound{}
	keys := slices.Sorted(maps.Keys(s.Claims))
	why := map[string]error{}
	for _, key := range keys { // what is asked for by name goes first
		claim := s.Claims[key]
		old, was := next[key]
		if want := claim.Spec.VolumeName; want != "" && (!was || old != want) {
			delete(next, key)
			if why[key] = reserve(next, s, key, want); why[key] == nil {
				next[key] = want
			}
		}
	}
	for _, key := range keys {
		if _, was := next[key]; was || why[key] != nil {
			continue
		}
		name, err := choose(next, s, s.Claims[key], key)
		if why[key] = err; err == nil {
			next[key] = name
		}
	}
	for _, key := range keys {
		s.bound[key] = bound{err: why[key]}
		if why[key] == nil {
			s.bound[key] = b.storage(s, key, next[key])
		}
	}
	return b.keep(next)
}

func (b *Binder) keep(next map[string]string) error {
	if maps.Equal(next, b.bindings) {
		return nil
	}
	data, err := json.MarshalIndent(next, "", "\t")
	if err != nil {
		return err
	}
	if err := sys.WriteFileAtomic(b.File, data, 0o600, true); err != nil {
		return fmt.Errorf("keep the bindings of claims: %w", err)
	}
	b.bindings = next
	return nil
}

func (b *Binder) storage(s *Set, key, volume string) bound {
	if volume == "" {
		return bound{storage: Storage{Directory: filepath.Join(b.Dir, filepath.FromSlash(key))}}
	}
	v := s.Volumes[volume]
	switch {
	case v == nil:
		return bound{err: fmt.Errorf("persistentvolumeclaim is bound to the volume %q, which is not defined any more", volume)}
	case v.Spec.HostPath != nil:
		return bound{storage: Storage{HostPath: v.Spec.HostPath}}
	case v.Spec.CSI != nil:
		return bound{storage: Storage{CSI: &v.Spec}}
	}
	return bound{storage: Storage{Local: v.Spec.Local.Path}}
}

// reserve tells what speaks against giving a claim the volume that it names. A
// claim that is gone has to let go of it.
func reserve(bindings map[string]string, s *Set, key, volume string) error {
	v := s.Volumes[volume]
	if v == nil {
		return fmt.Errorf("persistentvolume %q not found", volume)
	}
	if err := fits(v, s.Claims[key]); err != nil {
		return fmt.Errorf("persistentvolume %q does not fit: %w", volume, err)
	}
	maps.DeleteFunc(bindings, func(other, name string) bool { return name == volume && s.Claims[other] == nil })
	return free(bindings, v, key)
}

// free tells who else a volume belongs to.
func free(bindings map[string]string, v *corev1.PersistentVolume, key string) error {
	for other, name := range bindings {
		if name == v.Name && other != key {
			return fmt.Errorf("persistentvolume %q belongs to the claim %s", v.Name, other)
		}
	}
	if r := v.Spec.ClaimRef; r != nil && cmp.Or(r.Namespace, metav1.NamespaceDefault)+"/"+r.Name != key {
		return fmt.Errorf("persistentvolume %q is reserved for the claim %s/%s", v.Name, r.Namespace, r.Name)
	}
	return nil
}

// choose finds the smallest free volume that fits; one that is reserved for the
// claim goes first. A claim without a class may have a directory instead.
func choose(bindings map[string]string, s *Set, claim *corev1.PersistentVolumeClaim, key string) (string, error) {
	var found []*corev1.PersistentVolume
	for _, v := range s.Volumes {
		if fits(v, claim) == nil && free(bindings, v, key) == nil {
			found = append(found, v)
		}
	}
	if len(found) > 0 {
		return slices.MinFunc(found, func(a, b *corev1.PersistentVolume) int {
			if (a.Spec.ClaimRef != nil) != (b.Spec.ClaimRef != nil) {
				return map[bool]int{true: -1, false: 1}[a.Spec.ClaimRef != nil]
			}
			return cmp.Or(a.Spec.Capacity.Storage().Cmp(*b.Spec.Capacity.Storage()), cmp.Compare(a.Name, b.Name))
		}).Name, nil
	}
	if claim.Spec.StorageClassName == nil && claim.Spec.Selector == nil {
		return "", nil
	}
	return "", fmt.Errorf("no persistent volume fits the claim %s (class %q, %s, %v); one without storageClassName and selector gets a directory",
		key, ptr.Deref(claim.Spec.StorageClassName, ""), claim.Spec.Resources.Requests.Storage(), claim.Spec.AccessModes)
}

// fits tells what a volume lacks for a claim.
func fits(v *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) error {
	want := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if v.Spec.Capacity.Storage().Cmp(want) < 0 {
		return fmt.Errorf("it has %s, asked for are %s", v.Spec.Capacity.Storage(), &want)
	}
	if have, want := v.Spec.StorageClassName, ptr.Deref(claim.Spec.StorageClassName, ""); have != want {
		return fmt.Errorf("its class is %q, asked for is %q", have, want)
	}
	for _, m := range claim.Spec.AccessModes {
		if !slices.Contains(v.Spec.AccessModes, m) {
			return fmt.Errorf("it has no access mode %s", m)
		}
	}
	selector, err := metav1.LabelSelectorAsSelector(claim.Spec.Selector)
	if err != nil {
		return err
	}
	if claim.Spec.Selector != nil && !selector.Matches(labels.Set(v.Labels)) {
		return errors.New("its labels are not those asked for")
	}
	return nil
}
