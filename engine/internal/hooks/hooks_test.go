package hooks

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestAdd(t *testing.T) {
	for what, test := range map[string]struct {
		when string
		c    Container
		want bool
	}{
		"always":               {`{"always": true}`, Container{}, true},
		"never":                {`{"always": false}`, Container{}, false},
		"nothing said":         {`{}`, Container{}, false},
		"annotation":           {`{"annotations": {"^a$": "^1"}}`, Container{Annotations: map[string]string{"a": "12"}}, true},
		"another annotation":   {`{"annotations": {"^a$": "^1"}}`, Container{Annotations: map[string]string{"aa": "12", "a": "2"}}, false},
		"one of two":           {`{"annotations": {"^a$": "1", "^b$": "1"}}`, Container{Annotations: map[string]string{"a": "1"}}, false},
		"command":              {`{"commands": ["/sh$", "/bash$"]}`, Container{Command: "/bin/sh"}, true},
		"another command":      {`{"commands": ["/sh$", "/bash$"]}`, Container{Command: "/bin/cat"}, false},
		"bind mounts":          {`{"hasBindMounts": true}`, Container{HasBindMounts: true}, true},
		"no bind mounts":       {`{"hasBindMounts": true}`, Container{}, false},
		"always, with command": {`{"always": true, "commands": ["x"]}`, Container{Command: "y"}, false},
	} {
		dir := t.TempDir()
		write(t, dir, "a.json", `{"version": "1.0.0", "hook": {"path": "/hook", "timeout": 3}, "when": `+test.when+`, "stages": ["poststart", "poststop"]}`)
		s := &specs.Spec{}
		if err := Add(s, []string{dir, "/no/such/directory"}, test.c); err != nil {
			t.Errorf("%s: %v", what, err)
		} else if got := s.Hooks != nil && len(s.Hooks.Poststart) == 1 && len(s.Hooks.Poststop) == 1 && *s.Hooks.Poststop[0].Timeout == 3; got != test.want || !test.want && s.Hooks != nil {
			t.Errorf("%s: hooks are %+v", what, s.Hooks)
		}
	}
}

func TestAddInOrder(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	file := func(dir, name, path string) {
		write(t, dir, name, `{"version": "1.0.0", "hook": {"path": "`+path+`"}, "when": {"always": true}, "stages": ["prestart"]}`)
	}
	file(one, "20-b.json", "/replaced")
	file(one, "10-a.json", "/a")
	file(two, "20-b.json", "/b")
	write(t, two, "README", "no hook")
	s := &specs.Spec{}
	if err := Add(s, []string{one, two}, Container{}); err != nil {
		t.Fatal(err)
	}
	if h := s.Hooks.Prestart; len(h) != 2 || h[0].Path != "/a" || h[1].Path != "/b" { //nolint:staticcheck // deprecated
		t.Errorf("hooks are %v", h)
	}
}

func TestAddNamesBadFiles(t *testing.T) {
	for want, text := range map[string]string{
		"version":          `{"version": "0.1.0", "hook": {"path": "/x"}, "when": {"always": true}, "stages": ["prestart"]}`,
		"hook.path":        `{"version": "1.0.0", "hook": {"path": "x"}, "when": {"always": true}, "stages": ["prestart"]}`,
		"stages[0]":        `{"version": "1.0.0", "hook": {"path": "/x"}, "when": {"always": false}, "stages": ["late"]}`,
		"stages":           `{"version": "1.0.0", "hook": {"path": "/x"}, "when": {"always": true}}`,
		"when.commands[0]": `{"version": "1.0.0", "hook": {"path": "/x"}, "when": {"commands": ["("]}, "stages": ["prestart"]}`,
		"when.annotations": `{"version": "1.0.0", "hook": {"path": "/x"}, "when": {"annotations": {"a": "("}}, "stages": ["prestart"]}`,
		"unknown field":    `{"version": "1.0.0", "hooks": []}`,
		"EOF":              ``,
	} {
		dir := t.TempDir()
		write(t, dir, "bad.json", text)
		if err := Add(&specs.Spec{}, []string{dir}, Container{}); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "bad.json") {
			t.Errorf("error is %v, want one that names the file and %s", err, want)
		}
	}
}
