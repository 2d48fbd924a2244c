package cni

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLoad(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		want  string // network
		bad   []string
	}{
		{"nothing", nil, "", nil},
		{"list", map[string]string{"a.conflist": `{"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "x"}]}`}, "n", nil},
		{"single", map[string]string{"a.conf": `{"name": "n", "cniVersion": "0.3.1", "type": "x"}`}, "n", nil},
		{"list in json", map[string]string{"a.json": `{"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "x"}]}`}, "n", nil},
		{"lexical order", map[string]string{
			"b.conflist": `{"name": "b", "cniVersion": "1.0.0", "plugins": [{"type": "x"}]}`,
			"a.conf":     `{"name": "a", "cniVersion": "0.3.1", "type": "x"}`}, "a", nil},
		{"invalid first", map[string]string{
			"a.conflist": `{"name": "a", "plugins": []}`, "b.conf": `{"name": "b"}`, "c.conf": ``,
			"d.conflist": `{"name": "d/../..", "cniVersion": "1.0.0", "plugins": [{"type": "x"}]}`,
			"e.conflist": `{"name": "e", "cniVersion": "1.0.0", "plugins": [{"type": "../../bin/sh"}]}`,
			"f.conflist": `{"name": "f", "cniVersion": "9.0.0", "plugins": [{"type": "x"}]}`,
			"g.conflist": `{"name": "g", "cniVersion": "1.0.0", "plugins": [{"type": "x"}]}`,
		}, "g", []string{"a.conflist", "b.conf", "c.conf", "d.conflist", "e.conflist", "f.conflist"}},
		{"other files", map[string]string{"a.yaml": `x`, "a.conflist~": `x`}, "", nil},
		{"newest known version of several", map[string]string{"a.conflist": `{"name": "n", "cniVersions": ["0.4.0", "1.1.0", "7.0.0"], "plugins": [{"type": "x"}]}`}, "n", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range c.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			l, bad := Load(dir)
			if (l == nil) != (c.want == "") || l != nil && l.Name() != c.want {
				t.Errorf("got %v", l)
			}
			if len(bad) != len(c.bad) {
				t.Fatalf("bad: %v", bad)
			}
			for i, b := range bad {
				if filepath.Base(b.File) != c.bad[i] || !strings.Contains(b.Error(), b.File) {
					t.Errorf("bad: %v", b)
				}
			}
		})
	}
	if l, bad := Load(filepath.Join(t.TempDir(), "none")); l != nil || bad != nil {
		t.Errorf("no directory: %v, %v", l, bad)
	}
}

// Plugins of CNI 1.1 may each have a file of their own; a list stands alone.
func TestListWithPluginsFromFiles(t *testing.T) {
	dir := t.TempDir()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(dir, "n.conflist"), []byte(`{"name": "n", "cniVersion": "1.1.0", "plugins": [{"type": "x"}]}`), 0o600))
	must(os.Mkdir(filepath.Join(dir, "n"), 0o700))
	must(os.WriteFile(filepath.Join(dir, "n", "y.conf"), []byte(`{"type": "y", "capabilities": {"portMappings": true}}`), 0o600))
	l, bad := Load(dir)
	if l == nil {
		t.Fatal(bad)
	}
	again, err := Parse(l.File, l.Config())
	must(err)
	if !again.Has("portMappings") || len(again.list.Plugins) != 2 {
		t.Errorf("got %s", l.Config())
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "x", "capabilities": {"a": true}}]}`))
	f.Add([]byte(`{"name": "n", "cniVersions": ["1.0.0", "0.4.0"], "disableCheck": "true", "plugins": [null]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := Parse("f", data)
		if err != nil {
			return
		}
		again, err := Parse("f", l.Config())
		if err != nil || again.Name() != l.Name() || string(again.Config()) != string(l.Config()) {
			t.Fatalf("%q: read again: %v, %v", data, again, err)
		}
		l.Unserved(map[string]any{"a": 1})
	})
}
