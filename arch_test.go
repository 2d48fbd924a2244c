package podstead

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "podstead"

// mayImport is the import staircase: for each box, the boxes it may import.
// Packages of the folders in outside may import everything; test helpers (…test
// packages, imported by tests only) count as tests.
var mayImport = map[string][]string{
	"sys":    {},
	"cgroup": {"sys"},
	// systemd as the keeper of groups, with a D-Bus client.
	"cgroup/systemd": {"cgroup", "sys"},
	"network":        {"sys"},
	"image":          {"sys"},
	"oci/launch":     {"oci/seccomp", "sys"},
	"oci":            {"oci", "cgroup", "sys"},
	"supervisor":     {"oci/launch", "oci/seccomp", "sys"},
	"cri":            {"cri", "sys"},
	"engine":         {"engine", "cri", "supervisor", "image", "network", "oci", "cgroup", "sys"},
	// Docker instead of our own engine: it shares what is pure with that.
	"engine/docker": {"engine/internal", "cri", "network", "oci/launch", "cgroup", "sys"},
	"agent":         {"agent", "cri", "cgroup", "sys"},
	"ctl":           {"cri", "sys"},
}

// outside are the folders that stand beside the staircase, "" being the root.
var outside = []string{"", "cmd", "examples", "test"}

// forbidden lists what a box must not link, by prefix, with the reason.
var forbidden = []struct {
	pkg, prefix, why string
}{
	{"podstead/cmd/podstead-supervisor", "google.golang.org/", "the supervisor is copied at each fork: no grpc, no protobuf"},
	{"podstead/cmd/podstead-supervisor", "k8s.io/", "the supervisor is copied at each fork: no Kubernetes module"},
	{"podstead/cmd/podstead-supervisor", "net/http", "the supervisor speaks seqpacket only"},
	{"podstead/cmd/podstead-supervisor", "github.com/spf13/", "the supervisor parses its few flags itself"},
	{"podstead/cmd/podstead-oci", "google.golang.org/", "an OCI runtime is started for each command: no grpc, no protobuf"},
	{"podstead/cmd/podstead-oci", "k8s.io/", "an OCI runtime knows bundles, not pods"},
	{"podstead/cmd/podstead-oci", "net/http", "an OCI runtime talks to nobody"},
	{"podstead/cmd/podstead-oci", "podstead/supervisor", "an OCI runtime works alone"},
	{"podstead/agent", "podstead/engine", "agent and engine meet only in cri"},
	{"podstead/cmd/podstead", "testing", "test helpers must not be in the product"},
	{"podstead/cmd/podstead", "github.com/google/go-containerregistry", "the registry is for tests"},
}

type pkg struct {
	ImportPath, Dir, Doc, Name string
	Imports, Deps, GoFiles     []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,Doc,Name,Imports,Deps,GoFiles", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// box returns the longest entry of the staircase that holds a package, or "".
func box(path string) string {
	rel := strings.TrimPrefix(path, module+"/")
	best := ""
	for b := range mayImport {
		if within(rel, b) && len(b) > len(best) {
			best = b
		}
	}
	return best
}

func within(path, parent string) bool {
	return path == parent || strings.HasPrefix(path, parent+"/")
}

func isTestHelper(path string) bool {
	return strings.HasSuffix(path, "test") || strings.HasSuffix(path, "conformance") || within(path, module+"/test")
}

func TestImportsFollowTheStaircase(t *testing.T) {
	for _, p := range packages(t) {
		b := box(p.ImportPath)
		if b == "" {
			top, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/"), "/")
			if !slices.Contains(outside, top) {
				t.Errorf("%s belongs to no box: give %q a place in the staircase", p.ImportPath, top)
			}
			continue
		}
		if isTestHelper(p.ImportPath) {
			continue
		}
		for _, imp := range p.Imports {
			if !within(imp, module) {
				continue
			}
			if isTestHelper(imp) {
				t.Errorf("%s imports the test helper %s", p.ImportPath, imp)
				continue
			}
			rel := strings.TrimPrefix(imp, module+"/")
			ok := within(rel, b)
			for _, allowed := range mayImport[b] {
				ok = ok || within(rel, allowed)
			}
			if !ok {
				t.Errorf("%s imports %s: %s may import only %v", p.ImportPath, imp, b, mayImport[b])
			}
		}
	}
}

func TestForbiddenDependencies(t *testing.T) {
	for _, p := range packages(t) {
		for _, f := range forbidden {
			if p.ImportPath != f.pkg {
				continue
			}
			for _, dep := range p.Deps {
				if within(dep, strings.TrimSuffix(f.prefix, "/")) {
					t.Errorf("%s links %s: %s", p.ImportPath, dep, f.why)
				}
			}
		}
	}
}

func TestEveryPackageIsDocumented(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) > 0 && len(p.Doc) < 40 {
			t.Errorf("%s has no package documentation worth the name: %q", p.ImportPath, p.Doc)
		}
	}
}
