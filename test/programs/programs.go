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

	"golang.org/x/sys/unix"
)

// Crictl builds crictl and returns its path.
func Crictl() (string, error) {
	return built("crictl", "test/tools", "sigs.k8s.io/cri-tools/cmd/crictl")
}

// Critest builds critest and returns its path. Beside it is ginkgo, which
// critest runs itself with to run specs side by side.
func Critest() (string, error) {
	if _, err := built("ginkgo", "test/tools", "github.com/onsi/ginkgo/v2/ginkgo"); err != nil {
		return "", err
	}
	return built("critest", "test/tools", "sigs.k8s.io/cri-tools/cmd/critest")
}

// Podstead builds podstead and podstead-supervisor, and returns the path of the
// first; the second is beside it.
func Podstead() (string, error) { return built("podstead", ".", "./cmd/...") }

// Standin builds what runs in the images of test/critest.
func Standin() (string, error) { return built("standin", ".", "podstead/test/critest/standin") }

// built builds packages of the module in a directory of the source tree, and
// returns the path of the program of that name.
func built(name, module, packages string) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	bin := filepath.Join(root, "test", "tools", "bin")
	return filepath.Join(bin, name), build(filepath.Join(root, module), bin, packages)
}

// build builds packages, as seen from dir, into bin. Tests of several packages
// run at once: they take turns, and a program that is already there, and may be
// running, is replaced only by a different one, and as a whole.
func build(dir, bin, packages string) error {
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	lock, err := os.Open(bin)
	if err != nil {
		return err
	}
	defer lock.Close() // which unlocks it
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", bin, err)
	}
	staging, err := os.MkdirTemp(bin, ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(staging)
	args := []string{"build", "-o", staging + "/", packages}
	if filepath.Base(packages) == "critest" { // a test binary
		args = []string{"test", "-c", "-ldflags=-s -w", "-o", staging + "/critest", packages}
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", packages, err, bytes.TrimSpace(out))
	}
	built, err := os.ReadDir(staging)
	if err != nil {
		return err
	}
	for _, program := range built {
		if err := install(filepath.Join(staging, program.Name()), filepath.Join(bin, program.Name())); err != nil {
			return err
		}
	}
	return nil
}

// install moves a file to its place, unless the same is there.
func install(from, to string) error {
	is, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if was, err := os.ReadFile(to); err == nil && bytes.Equal(is, was) {
		return nil
	}
	return os.Rename(from, to)
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
