package critest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"podstead/test/host"
)

// pulledByDigest is the digest of an image that critest pulls. Nobody but its
// registry can serve it, so the digest of ours takes its place in the binary.
const pulledByDigest = "sha256:9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf"

// retarget copies critest so that it pulls another digest, and returns the
// copy's path.
func retarget(t *testing.T, critest, digest string) string {
	t.Helper()
	binary, err := os.ReadFile(critest)
	if err != nil {
		t.Fatal(err)
	}
	if len(digest) != len(pulledByDigest) || !bytes.Contains(binary, []byte(pulledByDigest)) {
		t.Fatalf("critest does not pull %s: is it of another version?", pulledByDigest)
	}
	path := filepath.Join(t.TempDir(), "critest")
	binary = bytes.ReplaceAll(binary, []byte(pulledByDigest), []byte(digest))
	if err := os.WriteFile(path, binary, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// spec is what critest reports of one.
type spec struct {
	Hierarchy []string `json:"ContainerHierarchyTexts"`
	Leaf      string   `json:"LeafNodeText"`
	Type      string   `json:"LeafNodeType"`
	State     string
	RunTime   time.Duration
	Failure   struct {
		Message  string
		Location struct {
			FileName   string
			LineNumber int
		}
	}
	Output string `json:"CapturedGinkgoWriterOutput"`
}

func (s spec) name() string {
	return strings.TrimPrefix(strings.Join(append(s.Hierarchy, s.Leaf), " "), "[k8s.io] ")
}

// run runs critest, with as many processes as told, against a runtime, and
// returns what it reports.
func run(t *testing.T, critest, endpoint string, processes int, more ...string) []spec {
	t.Helper()
	dir := t.TempDir()
	tmp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(tmp, 0o777); err != nil {
		t.Fatal(err)
	}
	args := []string{
		"-runtime-endpoint", endpoint, "-ginkgo.json-report", "report.json", "-ginkgo.no-color",
		"-ginkgo.timeout", "60m", "-test.timeout", "60m",
	}
	args = append(args, more...)
	if *websocket {
		args = append(args, "-websocket-exec", "-websocket-attach")
	}
	if *focus != "" {
		args = append(args, "-ginkgo.focus", *focus)
	}
	if processes > 1 {
		args = append(args, "-parallel", fmt.Sprint(processes))
	}
	cmd := exec.CommandContext(t.Context(), critest, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp,
		"PATH="+filepath.Dir(os.Getenv(critestVariable))+":"+os.Getenv("PATH")) // which has ginkgo
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	// A spec that failed may have left mounts, by which its files could not be removed.
	if err := host.UnmountBelow(dir); err != nil {
		t.Error(err)
	}
	// ginkgo leaves its report where it finds the suite, which critest puts there.
	found, _ := filepath.Glob(filepath.Join(tmp, "cri-test*", "report.json"))
	found = append(found, filepath.Join(dir, "report.json"))
	report, readErr := os.ReadFile(found[0])
	if readErr != nil {
		t.Fatalf("critest: %v: no report: %s", err, out[max(0, len(out)-4000):])
	}
	var suites []struct{ SpecReports []spec }
	if err := json.Unmarshal(report, &suites); err != nil {
		t.Fatalf("critest's report: %v", err)
	}
	var specs []spec
	for _, suite := range suites {
		specs = append(specs, suite.SpecReports...)
	}
	if err != nil && !slices.ContainsFunc(specs, func(s spec) bool { return s.State == "failed" || s.State == "timedout" }) {
		t.Errorf("critest: %v, and no spec tells why", err)
	}
	return specs
}
