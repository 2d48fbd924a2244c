package podstead

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// TestProgramsAreSmall holds the promised sizes, in bytes. The supervisor's
// matters most: it is there as long as a container is.
func TestProgramsAreSmall(t *testing.T) {
	if testing.Short() {
		t.Skip("linking is not short")
	}
	dir := t.TempDir()
	// As the Makefile builds them, but for -trimpath: paths are small, and all
	// packages would be compiled once more.
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", dir+"/", "./cmd/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for program, limit := range map[string]int64{
		"podstead": 70e6, "podstead-supervisor": 6e6, "podstead-oci": 10e6,
	} {
		info, err := os.Stat(filepath.Join(dir, program))
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > limit {
			t.Errorf("%s has %d bytes, more than the promised %d", program, info.Size(), limit)
		}
	}
}

// TestOtherArchitecture links for arm64 what has assembly and functions that may
// not grow their stack: only the linker tells whether they fit. The supervisor's
// imports are few.
func TestOtherArchitecture(t *testing.T) {
	if testing.Short() {
		t.Skip("linking is not short")
	}
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", os.DevNull, "./cmd/podstead-supervisor")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=arm64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("build: %v\n%s", err, out)
	}
}

// TestFuzzable links the same with what fuzzing adds to each function.
func TestFuzzable(t *testing.T) {
	if testing.Short() {
		t.Skip("linking is not short")
	}
	if runtime.GOARCH != "amd64" {
		t.Skip("they do not fit elsewhere")
	}
	if out, err := exec.Command("go", "test", "-c", "-o", os.DevNull, "-fuzz", "FuzzDecode", "./oci/launch").CombinedOutput(); err != nil {
		t.Errorf("build: %v\n%s", err, out)
	}
}
