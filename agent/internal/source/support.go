package source

import (
	_ "embed"
	"fmt"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

//go:embed support.txt
var supportText string

// class is what becomes of a field: '+', '~' or '-' of support.txt.
type class struct {
	mark   byte
	reason string
}

// support maps "Type.field" to its class.
type support map[string]class

// parseSupport reads the table; it is part of the program, so a mistake in it
// is a mistake of ours and an error of the first start and of the tests.
func parseSupport(text string) (support, error) {
	s := support{}
	typeName := ""
	for n, line := range strings.Split(text, "\n") {
		switch {
		case line == "" || line[0] == '#':
		case strings.HasPrefix(line, "+ "):
			for _, name := range strings.Fields(line[2:]) {
				if err := s.add(typeName, name, class{mark: '+'}); err != nil {
					return nil, err
				}
			}
		case strings.HasPrefix(line, "~ "), strings.HasPrefix(line, "- "):
			name, reason, ok := strings.Cut(line[2:], ": ")
			if !ok {
				return nil, fmt.Errorf("support.txt:%d: no reason", n+1)
			}
			if err := s.add(typeName, name, class{mark: line[0], reason: reason}); err != nil {
				return nil, err
			}
		default:
			typeName = line
		}
	}
	return s, nil
}

func (s support) add(typeName, name string, c class) error {
	key := typeName + "." + name
	if _, dup := s[key]; dup {
		return fmt.Errorf("support.txt: %s stands there twice", key)
	}
	s[key] = c
	return nil
}

// check walks a specification, of a pod or another object, and returns a warning for each field that
// is set and has no effect, and an error for each that is refused.
func (s support) check(spec any, path string) (warnings []string, errs field.ErrorList) {
	v := reflect.ValueOf(spec).Elem()
	s.walk(v, v.Type().Name(), path, func(path string, c class) {
		switch c.mark {
		case '~':
			warnings = append(warnings, path+" has no effect: "+c.reason)
		case '-':
			errs = append(errs, field.Forbidden(field.NewPath(path), c.reason))
		default:
			errs = append(errs, field.Forbidden(field.NewPath(path), "this field is not known here"))
		}
	})
	return warnings, errs
}

// walk visits every non-zero field that is not simply supported. owner is the
// name in the table: an embedded struct's fields belong to the outer type.
func (s support) walk(v reflect.Value, owner, path string, visit func(path string, c class)) {
	for i := range v.NumField() {
		f, value := v.Type().Field(i), v.Field(i)
		if value.IsZero() {
			continue
		}
		name := jsonName(f)
		if name == "" {
			s.walk(value, owner, path, visit)
			continue
		}
		at := path + "." + name
		c, known := s[owner+"."+name]
		if !known || c.mark != '+' {
			visit(at, c)
			continue
		}
		s.descend(value, at, visit)
	}
}

func (s support) descend(v reflect.Value, path string, visit func(string, class)) {
	switch v.Kind() {
	case reflect.Pointer:
		s.descend(v.Elem(), path, visit)
	case reflect.Slice:
		for i := range v.Len() {
			s.descend(v.Index(i), fmt.Sprintf("%s[%d]", path, i), visit)
		}
	case reflect.Struct:
		if isCore(v.Type()) {
			s.walk(v, v.Type().Name(), path, visit)
		}
	}
}

// isCore tells whether a struct type is one of the core API, as opposed to a
// quantity, a time and the like, which are leaves.
func isCore(t reflect.Type) bool {
	return t.PkgPath() == reflect.TypeFor[corev1.PodSpec]().PkgPath()
}

// jsonName is a field's name in a manifest, "" if its fields are inlined.
func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}
