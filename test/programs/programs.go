// Package programs builds the programs that tests and the benchmark run: our
// own, from this tree, and foreign ones, from the module in test/tools. They go
// to test/tools/bin; Go's build cache makes a second time cheap.
//
// Modules may have to be downloaded, so programs are built before a private
// host, which has no network, is made.
package programs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Crictl builds crictl and returns its path.
func Crictl() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	tools := filepath.Join(root, "test", "tools")
	path := filepath.Join(tools, "bin", "crictl")
	return path, build(tools, path, "sigs.k8s.io/cri-tools/cmd/crictl")
}

// Podstead builds podstead and podstead-supervisor, and returns the path of the
// first; the second is beside it.
func Podstead() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	bin := filepath.Join(root, "test", "tools", "bin")
	return filepath.Join(bin, "podstead"), build(root, bin+"/", "./cmd/...")
}

func build(dir, output, packages string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-o", output, packages)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", packages, err, bytes.TrimSpace(out))
	}
	return nil
}

// moduleRoot finds the directory of this module's go.mod, upwards from the
// working directory, which for a test is its package's.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "test", "tools", "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("no test/tools/go.mod above the working directory: not in the source tree")
		}
		dir = parent
	}
}
