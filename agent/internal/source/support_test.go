package source

import (
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// Every field of the specifications of the API module is in the table, once, and the
// table has no others: a new version of the module cannot add a silent field.
func TestSupportKnowsEveryField(t *testing.T) {
	s, err := parseSupport(supportText)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	var visit func(ty reflect.Type, owner string)
	visitType := func(ty reflect.Type) {
		for ty.Kind() == reflect.Pointer || ty.Kind() == reflect.Slice {
			ty = ty.Elem()
		}
		if ty.Kind() == reflect.Struct && isCore(ty) {
			visit(ty, ty.Name())
		}
	}
	visit = func(ty reflect.Type, owner string) {
		for i := range ty.NumField() {
			f := ty.Field(i)
			name := jsonName(f)
			if name == "" {
				visit(f.Type, owner)
				continue
			}
			key := owner + "." + name
			if seen[key] {
				continue
			}
			seen[key] = true
			c, ok := s[key]
			if !ok {
				t.Errorf("%s is not in support.txt", key)
			}
			if c.mark == '+' {
				visitType(f.Type)
			}
		}
	}
	for _, spec := range []reflect.Type{
		reflect.TypeFor[corev1.PodSpec](), reflect.TypeFor[corev1.PersistentVolumeSpec](), reflect.TypeFor[corev1.PersistentVolumeClaimSpec](),
	} {
		visit(spec, spec.Name())
	}
	for key := range s {
		if !seen[key] {
			t.Errorf("support.txt has %s, which nothing reaches", key)
		}
	}
}

func TestSupportNamesFields(t *testing.T) {
	s, err := parseSupport(supportText)
	if err != nil {
		t.Fatal(err)
	}
	spec := &corev1.PodSpec{
		NodeSelector: map[string]string{"a": "b"},
		Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{
			NFS: &corev1.NFSVolumeSource{Server: "s", Path: "/"}}}},
		Containers: []corev1.Container{{Name: "c", VolumeDevices: []corev1.VolumeDevice{{Name: "v"}}}},
	}
	warnings, errs := s.check(spec, "spec")
	if len(warnings) != 1 || !strings.HasPrefix(warnings[0], "spec.nodeSelector has no effect: ") {
		t.Errorf("warnings: %q", warnings)
	}
	got := errs.ToAggregate().Error()
	for _, want := range []string{"spec.volumes[0].nfs", "spec.containers[0].volumeDevices"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q does not name %s", got, want)
		}
	}
}
