package oci

import (
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/pflag"
)

var updateRows = flag.Bool("update", false, "write docs/oci-rows.md")

// TestRows: each command, flag and property is in rows.txt, with tests that exist.
func TestRows(t *testing.T) {
	b, err := os.ReadFile("rows.txt")
	if err != nil {
		t.Fatal(err)
	}
	tests, references := testNames(t), references(t)
	var page strings.Builder
	page.WriteString("# The OCI runtime, row by row\n\nWritten from `oci/rows.txt` by `go test ./oci -run Rows -update`; [oci.md](oci.md) tells more. The last column has the other runtimes that have it, on which the same tests run to be checked themselves; with a version where Debian 12's (runc 1.1, crun 1.8) is older.\n")
	patterns := map[string]bool{} // whether something matched
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if title, ok := strings.CutPrefix(line, "# "); ok && !strings.ContainsAny(title, ".:,") || title == "linux.resources" || title == "root, mounts, names" {
			page.WriteString("\n## " + title + "\n\n| | outcome | tests | others |\n|---|---|---|---|\n")
		}
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Split(line, " | ")
		if len(f) != 3 && len(f) != 4 {
			t.Fatalf("rows.txt: %q", line)
		}
		others := strings.Join(f[3:], "")
		for _, name := range strings.Fields(f[2]) {
			if !tests[name] {
				t.Errorf("rows.txt: %s: there is no %s", f[0], name)
			}
			if len(f) == 3 && len(references[name]) > len(others) {
				others = references[name]
			}
		}
		if others == "" {
			t.Errorf("rows.txt: %s: none of the tests runs on runc or crun, and nothing says why", f[0])
		}
		rows := strings.Split(f[0], ", ")
		for _, row := range rows {
			patterns[row] = false
		}
		page.WriteString("| `" + strings.Join(rows, "`, `") + "` | " + f[1] + " | " + strings.ReplaceAll(f[2], " ", ", ") + " | " + others + " |\n")
	}
	for _, row := range allRows() {
		if !covered(patterns, row) {
			t.Errorf("rows.txt has nothing about %s", row)
		}
	}
	for p, used := range patterns {
		if !used {
			t.Errorf("rows.txt: there is no %s", p)
		}
	}
	const file = "../docs/oci-rows.md"
	if *updateRows {
		if err := os.WriteFile(file, []byte(page.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != page.String() {
		t.Errorf("%s is not what rows.txt says: write it with -update (%v)", file, err)
	}
}

// covered finds the patterns for a row.
func covered(patterns map[string]bool, row string) bool {
	found := false
	for p := range patterns {
		prefix, open := strings.CutSuffix(p, "*")
		if p == row || open && strings.HasPrefix(row, prefix) {
			patterns[p], found = true, true
		}
	}
	return found
}

// allRows are the command line and the properties as they are in the code.
func allRows() []string {
	var rows []string
	cmd := (&cli{}).command(nil)
	cmd.PersistentFlags().VisitAll(func(f *pflag.Flag) { rows = append(rows, "--"+f.Name) })
	for _, c := range cmd.Commands() {
		rows = append(rows, c.Name())
		c.Flags().VisitAll(func(f *pflag.Flag) { rows = append(rows, c.Name()+" --"+f.Name) })
	}
	return append(rows, properties("", reflect.TypeFor[specs.Spec](), 3)...)
}

// properties are the names of a type's fields in JSON, down to a depth.
func properties(prefix string, t reflect.Type, depth int) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || depth == 0 {
		return []string{prefix}
	}
	var list []string
	for f := range fields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous:
			list = append(list, properties(prefix, f.Type, depth)...)
			continue
		case prefix != "":
			name = prefix + "." + name
		case f.Type.Kind() == reflect.Pointer && f.Type.Elem().PkgPath() != "" && otherSystems[name]:
			continue
		}
		below := depth - 1
		if name == "linux.resources" {
			below = 3
		}
		list = append(list, properties(name, f.Type, below)...)
	}
	return list
}

var otherSystems = map[string]bool{"windows": true, "solaris": true, "vm": true, "zos": true, "freebsd": true}

func fields(t reflect.Type) func(yield func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range t.NumField() {
			if !yield(t.Field(i)) {
				return
			}
		}
	}
}

// testNames are those of this package, and of others with their last name before.
func testNames(t *testing.T) map[string]bool {
	names := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	for prefix, dir := range map[string]string{"": ".", "launch.": "launch", "seccomp.": "seccomp", "criu.": "criu", "cgroup.": "../cgroup"} {
		files, err := filepath.Glob(dir + "/*_test.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range function.FindAllStringSubmatch(string(b), -1) {
				names[prefix+m[1]] = true
			}
		}
	}
	return names
}

// references tells on which runtimes the tests of this package run besides ours, as
// onBoth, notRunc, needs and crunDiffers have it for the whole of a test.
func references(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	function := regexp.MustCompile(`(?ms)^func (Test\w+)\(.*?^}`)
	first := regexp.MustCompile(`onBoth\(t, func\(b \*box\) \{\s*b\.(notRunc|needs)\((?:"([^"]*)", "([^"]*)"\))?`)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range function.FindAllStringSubmatch(string(b), -1) {
			name, body := m[1], m[0]
			if !strings.Contains(body, "onBoth(") {
				continue
			}
			runc, crun := "runc", "crun"
			if f := first.FindStringSubmatch(body); f != nil && f[1] == "notRunc" {
				runc = ""
			} else if f != nil {
				runc, crun = since(runc, f[2]), since(crun, f[3])
			}
			if crunDiffers[name] != "" {
				crun = ""
			}
			all[name] = strings.Trim(runc+", "+crun, ", ")
		}
	}
	return all
}

// since is a runtime from a version on, "" if that is "".
func since(runtime, version string) string {
	if version == "" {
		return ""
	}
	return runtime + " " + version
}
