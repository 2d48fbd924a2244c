package source

import (
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"podstead/agent/internal/request"
)

func (c *podCheck) volumeList(p *field.Path) {
	for i := range c.pod.Spec.Volumes {
		v, at := &c.pod.Spec.Volumes[i], p.Index(i)
		if v.Name == "" {
			c.add(field.Required(at.Child("name"), ""))
			continue
		}
		c.invalid(at.Child("name"), v.Name, validation.IsDNS1123Label(v.Name))
		if c.volumes[v.Name] != nil {
			c.add(field.Duplicate(at.Child("name"), v.Name))
		}
		c.volumes[v.Name] = v
		c.volume(v, at)
	}
}

// medium checks where an emptyDir is. One of huge pages needs a container that
// may use them, of the size that it names if it names one.
func (c *podCheck) medium(m corev1.StorageMedium, p *field.Path) {
	if !strings.HasPrefix(string(m), string(corev1.StorageMediumHugePages)) {
		oneOf(c, p, m, corev1.StorageMediumDefault, corev1.StorageMediumMemory, corev1.StorageMediumHugePages, corev1.StorageMediumHugePagesPrefix+"SIZE")
		return
	}
	sizes := request.HugePageSizes(c.pod)
	if m == corev1.StorageMediumHugePages {
		if len(sizes) != 1 {
			c.add(field.Invalid(p, string(m), "the containers ask for huge pages of "+strconv.Itoa(len(sizes))+" sizes, must be one"))
		}
		return
	}
	if size, ok := request.HugePageSize(string(m)); !ok || !slices.Contains(sizes, size) {
		c.add(field.Invalid(p, string(m), "no container asks for huge pages of this size"))
	}
}

func (c *podCheck) volume(v *corev1.Volume, p *field.Path) {
	sources := 0
	src := reflect.ValueOf(v.VolumeSource)
	for i := range src.NumField() {
		if !src.Field(i).IsZero() {
			sources++
		}
	}
	if sources != 1 {
		c.add(field.Invalid(p, v.Name, "must have exactly one source"))
	}
	switch {
	case v.EmptyDir != nil:
		at := p.Child("emptyDir")
		c.medium(v.EmptyDir.Medium, at.Child("medium"))
		if q := v.EmptyDir.SizeLimit; q != nil && q.Sign() < 0 {
			c.add(field.Invalid(at.Child("sizeLimit"), q.String(), "must not be negative"))
		}
		if m := v.EmptyDir.Mode; m != nil && (*m < 0 || *m > 0o1777) {
			c.add(field.Invalid(at.Child("mode"), *m, "must be between 0000 and 01777"))
		}
	case v.HostPath != nil:
		c.hostPath(v.HostPath, p.Child("hostPath"))
	case v.CSI != nil:
		c.driver(v.CSI.Driver, p.Child("csi", "driver"))
	case v.Image != nil:
		at := p.Child("image")
		if v.Image.Reference == "" {
			c.add(field.Required(at.Child("reference"), ""))
		} else if _, err := reference.ParseAnyReference(v.Image.Reference); err != nil {
			c.add(field.Invalid(at.Child("reference"), v.Image.Reference, err.Error()))
		}
		oneOf(c, at.Child("pullPolicy"), v.Image.PullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	case v.Secret != nil:
		at := p.Child("secret")
		if v.Secret.SecretName == "" {
			c.add(field.Required(at.Child("secretName"), ""))
		}
		c.mode(at.Child("defaultMode"), v.Secret.DefaultMode)
		c.items(at.Child("items"), v.Secret.Items)
	case v.ConfigMap != nil:
		at := p.Child("configMap")
		if v.ConfigMap.Name == "" {
			c.add(field.Required(at.Child("name"), ""))
		}
		c.mode(at.Child("defaultMode"), v.ConfigMap.DefaultMode)
		c.items(at.Child("items"), v.ConfigMap.Items)
	case v.DownwardAPI != nil:
		at := p.Child("downwardAPI")
		c.mode(at.Child("defaultMode"), v.DownwardAPI.DefaultMode)
		c.downward(at.Child("items"), v.DownwardAPI.Items)
	case v.PersistentVolumeClaim != nil:
		at := p.Child("persistentVolumeClaim", "claimName")
		if v.PersistentVolumeClaim.ClaimName == "" {
			c.add(field.Required(at, ""))
		} else {
			c.invalid(at, v.PersistentVolumeClaim.ClaimName, validation.IsDNS1123Subdomain(v.PersistentVolumeClaim.ClaimName))
		}
	case v.Ephemeral != nil:
		c.ephemeral(v.Ephemeral.VolumeClaimTemplate, p.Child("ephemeral", "volumeClaimTemplate"))
	case v.Projected != nil:
		c.projected(v.Projected, p.Child("projected"))
	}
}

// ephemeral checks the template of a claim that lives as long as the pod: here
// that is a directory of the pod.
func (c *podCheck) ephemeral(t *corev1.PersistentVolumeClaimTemplate, p *field.Path) {
	if t == nil {
		c.add(field.Required(p, ""))
		return
	}
	spec := p.Child("spec")
	c.add(validateClaimSpec(&t.Spec, spec)...)
	if t.Spec.StorageClassName != nil {
		c.add(field.Forbidden(spec.Child("storageClassName"), "there are no storage classes here; leave it out for a directory"))
	}
	if t.Spec.Selector != nil || t.Spec.VolumeName != "" {
		c.add(field.Forbidden(spec.Child("selector"), "an ephemeral volume is made for the pod, none is chosen"))
	}
}

func (c *podCheck) hostPath(h *corev1.HostPathVolumeSource, p *field.Path) {
	if h.Path == "" {
		c.add(field.Required(p.Child("path"), ""))
	} else if !path.IsAbs(h.Path) {
		c.add(field.Invalid(p.Child("path"), h.Path, "must be an absolute path"))
	}
	if slices.Contains(strings.Split(h.Path, "/"), "..") {
		c.add(field.Invalid(p.Child("path"), h.Path, "must not contain '..'"))
	}
	oneOf(c, p.Child("type"), *h.Type, corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate, corev1.HostPathDirectory,
		corev1.HostPathFileOrCreate, corev1.HostPathFile, corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev)
}

func (c *podCheck) projected(pr *corev1.ProjectedVolumeSource, p *field.Path) {
	c.mode(p.Child("defaultMode"), pr.DefaultMode)
	for i, s := range pr.Sources {
		at := p.Child("sources").Index(i)
		n := 0
		if s.Secret != nil {
			n++
			if s.Secret.Name == "" {
				c.add(field.Required(at.Child("secret", "name"), ""))
			}
			c.items(at.Child("secret", "items"), s.Secret.Items)
		}
		if s.ConfigMap != nil {
			n++
			if s.ConfigMap.Name == "" {
				c.add(field.Required(at.Child("configMap", "name"), ""))
			}
			c.items(at.Child("configMap", "items"), s.ConfigMap.Items)
		}
		if s.DownwardAPI != nil {
			n++
			c.downward(at.Child("downwardAPI", "items"), s.DownwardAPI.Items)
		}
		if n > 1 {
			c.add(field.Invalid(at, n, "must have exactly one source"))
		}
	}
}

func (c *podCheck) mode(p *field.Path, mode *int32) {
	if mode != nil && (*mode < 0 || *mode > 0o777) {
		c.add(field.Invalid(p, *mode, "must be between 0 and 0777"))
	}
}

func (c *podCheck) items(p *field.Path, items []corev1.KeyToPath) {
	for i, it := range items {
		at := p.Index(i)
		if it.Key == "" {
			c.add(field.Required(at.Child("key"), ""))
		}
		c.file(at.Child("path"), it.Path)
		c.mode(at.Child("mode"), it.Mode)
	}
}

func (c *podCheck) downward(p *field.Path, items []corev1.DownwardAPIVolumeFile) {
	for i, it := range items {
		at := p.Index(i)
		c.file(at.Child("path"), it.Path)
		c.mode(at.Child("mode"), it.Mode)
		switch {
		case it.FieldRef != nil && it.ResourceFieldRef != nil, it.FieldRef == nil && it.ResourceFieldRef == nil:
			c.add(field.Invalid(at, it.Path, "must have exactly one of fieldRef and resourceFieldRef"))
		case it.FieldRef != nil:
			c.fieldPath(at.Child("fieldRef", "fieldPath"), it.FieldRef.FieldPath, true)
		default:
			c.resourceRef(at.Child("resourceFieldRef"), it.ResourceFieldRef, true)
		}
	}
}

// file checks the path of a file inside a volume.
func (c *podCheck) file(p *field.Path, value string) {
	if value == "" {
		c.add(field.Required(p, ""))
		return
	}
	c.descending(p, value)
	if strings.HasPrefix(value, "..") {
		c.add(field.Invalid(p, value, "must not begin with '..'"))
	}
}

func (c *podCheck) mounts(ctr *corev1.Container, p *field.Path) {
	seen := map[string]bool{}
	for i, m := range ctr.VolumeMounts {
		at := p.Index(i)
		if m.Name == "" {
			c.add(field.Required(at.Child("name"), ""))
		} else if c.volumes[m.Name] == nil {
			c.add(field.NotFound(at.Child("name"), m.Name))
		}
		if m.MountPath == "" {
			c.add(field.Required(at.Child("mountPath"), ""))
		}
		if seen[path.Clean("/"+m.MountPath)] {
			c.add(field.Invalid(at.Child("mountPath"), m.MountPath, "must be unique"))
		}
		seen[path.Clean("/"+m.MountPath)] = true
		if m.SubPath != "" && m.SubPathExpr != "" {
			c.add(field.Invalid(at.Child("subPathExpr"), m.SubPathExpr, "must not be set together with subPath"))
		}
		c.descending(at.Child("subPath"), m.SubPath)
		c.descending(at.Child("subPathExpr"), m.SubPathExpr)
		c.propagation(ctr, &m, at)
	}
}

func (c *podCheck) propagation(ctr *corev1.Container, m *corev1.VolumeMount, p *field.Path) {
	mode := corev1.MountPropagationNone
	if m.MountPropagation != nil {
		mode = *m.MountPropagation
		oneOf(c, p.Child("mountPropagation"), mode, corev1.MountPropagationNone, corev1.MountPropagationHostToContainer, corev1.MountPropagationBidirectional)
	}
	if mode == corev1.MountPropagationBidirectional {
		if sc := ctr.SecurityContext; sc == nil || sc.Privileged == nil || !*sc.Privileged {
			c.add(field.Forbidden(p.Child("mountPropagation"), "Bidirectional is for privileged containers only"))
		}
	}
	if r := m.RecursiveReadOnly; r != nil && *r != corev1.RecursiveReadOnlyDisabled {
		oneOf(c, p.Child("recursiveReadOnly"), *r, corev1.RecursiveReadOnlyIfPossible, corev1.RecursiveReadOnlyEnabled)
		if !m.ReadOnly {
			c.add(field.Forbidden(p.Child("recursiveReadOnly"), "only with readOnly: true"))
		}
		if mode != corev1.MountPropagationNone {
			c.add(field.Forbidden(p.Child("recursiveReadOnly"), "only with mountPropagation None"))
		}
	}
}
