package config

import (
	"reflect"
	"strings"

	"podstead/cri/tracing"
)

// Kind is the handler's type, with its default.
func (h Handler) Kind() string {
	if h.Type == "" {
		return OCI
	}
	return h.Type
}

// Program is the handler's path, with its default.
func (h Handler) Program() string {
	switch {
	case h.Path != "":
		return h.Path
	case h.Type == Shim:
		return "containerd-shim-" + h.Name + "-v2"
	}
	return h.Name
}

// Change is a field in which two configurations differ.
type Change struct {
	Field string // "network.cniConfDir"
	Live  bool   // it needs no new start of the engine
}

// Diff names the fields in which next differs from c.
func (c Config) Diff(next Config) []Change {
	return diff(nil, reflect.ValueOf(c), reflect.ValueOf(next), "")
}

func diff(changes []Change, a, b reflect.Value, prefix string) []Change {
	for i := range a.NumField() {
		field := a.Type().Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		name = prefix + name
		// A part of the file has tagged fields, a Duration or Bytes has not.
		if field.Type.Kind() == reflect.Struct && field.Type.Field(0).Tag != "" {
			changes = diff(changes, a.Field(i), b.Field(i), name+".")
			continue
		}
		if !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			changes = append(changes, Change{Field: name, Live: field.Tag.Get("reload") != "restart"})
		}
	}
	return changes
}

// Matches tells whether a name is one of the list's, or begins as one of its
// patterns does.
func Matches(list []string, name string) bool {
	for _, p := range list {
		if begin, ok := strings.CutSuffix(p, "*"); p == name || ok && strings.HasPrefix(name, begin) {
			return true
		}
	}
	return false
}

// Select returns the annotations whose names match a list, nil if none does.
func Select(annotations map[string]string, list []string) map[string]string {
	var out map[string]string
	for k, v := range annotations {
		if !Matches(list, k) {
			continue
		}
		if out == nil {
			out = map[string]string{}
		}
		out[k] = v
	}
	return out
}

// TracingSettings is what the file says of traces, nil if nothing.
func (c Config) TracingSettings() *tracing.Settings {
	if c.Tracing == nil {
		return nil
	}
	return &tracing.Settings{Endpoint: c.Tracing.Endpoint, PerMillion: c.Tracing.SamplingRatePerMillion}
}
