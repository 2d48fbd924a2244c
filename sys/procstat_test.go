package sys

import (
	"os"
	"slices"
	"strconv"
	"testing"
)

func TestParseStat(t *testing.T) {
	for text, want := range map[string]struct {
		name   string
		fields []string
	}{
		"12 (cat) D 1 12\n":        {"cat", []string{"D", "1", "12"}},
		"12 (a) b) (c) Z 1\n":      {"a) b) (c", []string{"Z", "1"}},
		"12 (line\nR 7) S 3":       {"line\nR 7", []string{"S", "3"}},
		"12 () X":                  {"", []string{"X"}},
		"12 (cat)":                 {"cat", nil},
		"":                         {"", nil},
		"12 cat D 1":               {"", nil},
		")(":                       {"", nil},
		"no process ) of a ( kind": {"", nil},
	} {
		if name, fields := ParseStat([]byte(text)); name != want.name || !slices.Equal(fields, want.fields) {
			t.Errorf("%q: %q, %q", text, name, fields)
		}
	}
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	if _, fields := ParseStat(own); len(fields) < 50 || fields[1] != strconv.Itoa(os.Getppid()) {
		t.Errorf("of this process: %q", fields)
	}
}
