// Package kubeletconfig reads a stock KubeletConfiguration
// (kubelet.config.k8s.io/v1beta1) and its drop-in directory, strictly as the
// kubelet does, and tells the agent what of it is to take effect. fields.txt
// lists every field: it takes effect here, or its setting is warned about by
// name, with the reason.
package kubeletconfig

import (
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	kubelet "k8s.io/kubelet/config/v1beta1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

//go:embed fields.txt
var fieldsText string

const (
	apiVersion = "kubelet.config.k8s.io/v1beta1"
	kind       = "KubeletConfiguration"
)

// Read reads a file and the *.conf files of a directory ("": none), which are
// merged over it in the order of their names: objects key by key, all else as a
// whole. Unknown fields are errors; warnings name the fields that are set and
// have no effect.
func Read(file, dropIns string) (c *kubelet.KubeletConfiguration, warnings []string, err error) {
	all := map[string]any{}
	files := []string{}
	if file != "" {
		files = append(files, file)
	}
	if dropIns != "" {
		entries, err := os.ReadDir(dropIns)
		if err != nil {
			return nil, nil, err
		}
		for _, e := range entries { // sorted
			if !e.IsDir() && filepath.Ext(e.Name()) == ".conf" {
				files = append(files, filepath.Join(dropIns, e.Name()))
			}
		}
	}
	for _, name := range files {
		one, err := readOne(name)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		merge(all, one)
	}
	data, err := yaml.Marshal(all)
	if err != nil {
		return nil, nil, err
	}
	c = &kubelet.KubeletConfiguration{}
	if err := decode(data, c); err != nil {
		return nil, nil, err
	}
	if warnings, err = withoutEffect(all); err != nil {
		return nil, nil, err
	}
	return c, warnings, nil
}

// readOne reads and checks one file.
func readOne(name string) (map[string]any, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	var c kubelet.KubeletConfiguration
	if err := decode(data, &c); err != nil {
		return nil, err
	}
	if c.Kind != kind || c.APIVersion != apiVersion {
		return nil, fmt.Errorf("it is %q of %q, want %s of %s", c.Kind, c.APIVersion, kind, apiVersion)
	}
	out := map[string]any{}
	return out, yaml.Unmarshal(data, &out)
}

func decode(data []byte, c *kubelet.KubeletConfiguration) error {
	text, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return err
	}
	strict, err := kjson.UnmarshalStrict(text, c)
	return errors.Join(append(strict, err)...)
}

// merge puts src over dst (RFC 7396).
func merge(dst, src map[string]any) {
	for k, v := range src {
		old, isMap := dst[k].(map[string]any)
		more, alsoMap := v.(map[string]any)
		switch {
		case v == nil:
			delete(dst, k)
		case isMap && alsoMap:
			merge(old, more)
		default:
			dst[k] = v
		}
	}
}

// fields returns what fields.txt says: "" for a field that takes effect, else
// why it does not.
func fields() (map[string]string, error) {
	out := map[string]string{}
	for n, line := range strings.Split(strings.TrimSpace(fieldsText), "\n") {
		if strings.HasPrefix(line, "#") {
			continue
		}
		names, reason, without := strings.Cut(line[min(2, len(line)):], ": ")
		if without != strings.HasPrefix(line, "~ ") {
			return nil, fmt.Errorf("fields.txt:%d: %q", n+1, line)
		}
		for _, name := range strings.Fields(names) {
			out[name] = reason
		}
	}
	return out, nil
}

func withoutEffect(set map[string]any) (warnings []string, err error) {
	known, err := fields()
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if gates, ok := set[name].(map[string]any); ok && name == "featureGates" && len(gates) == 1 && gates[fasterBackoff] != nil {
			continue
		}
		if why, ok := known[name]; ok && why != "" {
			warnings = append(warnings, name+" has no effect: "+why)
		}
	}
	return warnings, nil
}
