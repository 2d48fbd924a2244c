package agent

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var updateRows = flag.Bool("update", false, "write docs/kubelet-rows.md")

// testDirs are where the tests of rows.txt are, by what stands before the dot; ""
// is for packages of agent/internal.
var testDirs = map[string]string{
	"kubeletconfig": "kubeletconfig", "e2etest": "e2etest", "e2e": "../test/e2e", "hostile": "../test/hostile",
	"restart": "../test/restart", "service": "../test/service",
	"engine": "../engine", "spec": "../engine/internal/spec", "selinux": "../engine/internal/selinux",
	"supervisor": "../supervisor", "ctl": "../ctl",
}

// TestRows: what rows.txt says of a test is true at least in that it exists, and
// the page is what it says.
func TestRows(t *testing.T) {
	b, err := os.ReadFile("rows.txt")
	if err != nil {
		t.Fatal(err)
	}
	tests := rowTests{}
	var page strings.Builder
	page.WriteString("# What a kubelet does, row by row\n\nWritten from `agent/rows.txt` by `go test ./agent -run Rows -update`; [agent.md](agent.md) tells more.\n")
	_, text, _ := strings.Cut(string(b), "\n\n") // what it is
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		title, isTitle := strings.CutPrefix(line, "# ")
		f := strings.Split(line, " |")
		switch {
		case line == "":
		case isTitle:
			page.WriteString("\n## " + title + "\n\n| | outcome | tests |\n|---|---|---|\n")
		case line == "@fields":
			page.WriteString(fieldRows(t))
		case len(f) != 3 || strings.TrimSpace(f[2]) == "" && !strings.Contains(f[1], "not"):
			t.Fatalf("rows.txt: %q", line)
		default:
			names := strings.Fields(f[2])
			for _, name := range names {
				if !tests.have(t, name) {
					t.Errorf("rows.txt: %s: there is no %s", f[0], name)
				}
			}
			page.WriteString("| " + f[0] + " | " + strings.TrimSpace(f[1]) + " | " + strings.Join(names, ", ") + " |\n")
		}
	}
	const file = "../docs/kubelet-rows.md"
	if *updateRows {
		if err := os.WriteFile(file, []byte(page.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != page.String() {
		t.Errorf("%s is not what rows.txt says: write it with -update (%v)", file, err)
	}
}

// fieldRows are those of a KubeletConfiguration, which a test of that package
// knows to be complete.
func fieldRows(t *testing.T) string {
	b, err := os.ReadFile("kubeletconfig/fields.txt")
	if err != nil {
		t.Fatal(err)
	}
	var rows strings.Builder
	for line := range strings.Lines(string(b)) {
		mark, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		names, reason, _ := strings.Cut(rest, ": ")
		list := "`" + strings.Join(strings.Fields(names), "`, `") + "`"
		switch mark {
		case "+":
			rows.WriteString("| " + list + " | takes effect | kubeletconfig.TestEveryFieldIsKnown |\n")
		case "~":
			rows.WriteString("| " + list + " | warned about by name: " + reason + " | kubeletconfig.TestNicheFieldsAreNamed |\n")
		}
	}
	return rows.String()
}

// rowTests are the names of tests, by package, as far as they were read.
type rowTests map[string]map[string]bool

var testFunction = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)

func (r rowTests) have(t *testing.T, name string) bool {
	pkg, test, qualified := strings.Cut(name, ".")
	dir := "."
	if !qualified {
		pkg, test = "", name
	} else if dir = testDirs[pkg]; dir == "" {
		dir = "internal/" + pkg
	}
	if r[pkg] == nil {
		r[pkg] = map[string]bool{}
		files, _ := filepath.Glob(dir + "/*_test.go")
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range testFunction.FindAllStringSubmatch(string(b), -1) {
				r[pkg][m[1]] = true
			}
		}
	}
	return r[pkg][test]
}
