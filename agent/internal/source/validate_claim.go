package source

import (
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// acceptVolume defaults and validates a PersistentVolume: a directory of this
// node.
func (d *Decoder) acceptVolume(v *corev1.PersistentVolume) (warnings []string, err error) {
	warnings, errs := d.support.check(&v.Spec, "spec")
	errs = append(errs, validateMeta(&v.ObjectMeta)...)
	if v.Namespace != "" {
		errs = append(errs, field.Forbidden(field.NewPath("metadata", "namespace"), "volumes are in no namespace"))
	}
	spec := field.NewPath("spec")
	def(&v.Spec.PersistentVolumeReclaimPolicy, corev1.PersistentVolumeReclaimRetain)
	switch v.Spec.PersistentVolumeReclaimPolicy {
	case corev1.PersistentVolumeReclaimRetain:
	case corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRecycle:
		warnings = append(warnings, "spec.persistentVolumeReclaimPolicy has no effect: nothing deletes the data but you")
	default:
		errs = append(errs, field.NotSupported(spec.Child("persistentVolumeReclaimPolicy"), v.Spec.PersistentVolumeReclaimPolicy,
			[]corev1.PersistentVolumeReclaimPolicy{corev1.PersistentVolumeReclaimRetain, corev1.PersistentVolumeReclaimDelete}))
	}
	if q, ok := v.Spec.Capacity[corev1.ResourceStorage]; !ok || q.Sign() <= 0 {
		errs = append(errs, field.Required(spec.Child("capacity").Key("storage"), "a positive quantity"))
	}
	errs = append(errs, validateModes(v.Spec.AccessModes, v.Spec.VolumeMode, spec)...)
	c := &podCheck{}
	switch {
	case sources(v.Spec.HostPath != nil, v.Spec.Local != nil, v.Spec.CSI != nil) > 1:
		c.add(field.Invalid(spec, v.Name, "must have exactly one source"))
	case v.Spec.HostPath != nil:
		defPtr(&v.Spec.HostPath.Type, corev1.HostPathUnset)
		c.hostPath(v.Spec.HostPath, spec.Child("hostPath"))
	case v.Spec.Local != nil:
		p, at := v.Spec.Local.Path, spec.Child("local", "path")
		if !path.IsAbs(p) || slices.Contains(strings.Split(p, "/"), "..") {
			c.add(field.Invalid(at, p, "must be an absolute path without '..'"))
		}
	case v.Spec.CSI != nil:
		c.driver(v.Spec.CSI.Driver, spec.Child("csi", "driver"))
		if v.Spec.CSI.VolumeHandle == "" {
			c.add(field.Required(spec.Child("csi", "volumeHandle"), ""))
		}
	case len(errs) == 0:
		c.add(field.Required(spec.Child("local"), "or hostPath, or csi"))
	}
	v.Status = corev1.PersistentVolumeStatus{}
	clearMeta(&v.ObjectMeta)
	return warnings, append(errs, c.errs...).ToAggregate()
}

func sources(set ...bool) (n int) {
	for _, s := range set {
		if s {
			n++
		}
	}
	return n
}

// driver checks the name of a CSI driver.
func (c *podCheck) driver(name string, p *field.Path) {
	if name == "" {
		c.add(field.Required(p, ""))
		return
	}
	c.invalid(p, name, validation.IsDNS1123Subdomain(strings.ToLower(name)))
}

// acceptClaim defaults and validates a PersistentVolumeClaim.
func (d *Decoder) acceptClaim(claim *corev1.PersistentVolumeClaim) (warnings []string, err error) {
	warnings, errs := d.support.check(&claim.Spec, "spec")
	errs = append(errs, validateMeta(&claim.ObjectMeta)...)
	errs = append(errs, validateClaimSpec(&claim.Spec, field.NewPath("spec"))...)
	claim.Status = corev1.PersistentVolumeClaimStatus{}
	clearMeta(&claim.ObjectMeta)
	return warnings, errs.ToAggregate()
}

func validateClaimSpec(s *corev1.PersistentVolumeClaimSpec, p *field.Path) (errs field.ErrorList) {
	if q, ok := s.Resources.Requests[corev1.ResourceStorage]; !ok || q.Sign() <= 0 {
		errs = append(errs, field.Required(p.Child("resources", "requests").Key("storage"), "a positive quantity"))
	}
	if _, err := metav1.LabelSelectorAsSelector(s.Selector); err != nil {
		errs = append(errs, field.Invalid(p.Child("selector"), s.Selector, err.Error()))
	}
	return append(errs, validateModes(s.AccessModes, s.VolumeMode, p)...)
}

func validateModes(modes []corev1.PersistentVolumeAccessMode, volume *corev1.PersistentVolumeMode, p *field.Path) (errs field.ErrorList) {
	if len(modes) == 0 {
		errs = append(errs, field.Required(p.Child("accessModes"), "at least one"))
	}
	known := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce, corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOncePod}
	for i, m := range modes {
		if !slices.Contains(known, m) {
			errs = append(errs, field.NotSupported(p.Child("accessModes").Index(i), m, known))
		}
	}
	if volume != nil && *volume != corev1.PersistentVolumeFilesystem {
		errs = append(errs, field.Forbidden(p.Child("volumeMode"), "block volumes are not supported; use Filesystem"))
	}
	return errs
}

// clearMeta removes what a server would have written.
func clearMeta(m *metav1.ObjectMeta) {
	m.ResourceVersion, m.Generation, m.ManagedFields, m.OwnerReferences = "", 0, nil, nil
	m.DeletionTimestamp, m.DeletionGracePeriodSeconds = nil, nil
}
