// Package programs builds the programs that tests and the benchmark run: our
// own, from this tree, and foreign ones, from the modules in test/tools. They go
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
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Crictl builds crictl and returns its path.
func Crictl() (string, error) {
	return program{name: "crictl", module: "test/tools", packages: "sigs.k8s.io/cri-tools/cmd/crictl"}.build()
}

// Critest builds critest, a test binary, and returns its path. Beside it is
// ginkgo, by which critest runs specs side by side.
func Critest() (string, error) {
	if _, err := (program{name: "ginkgo", module: "test/tools", packages: "github.com/onsi/ginkgo/v2/ginkgo"}).build(); err != nil {
		return "", err
	}
	return program{
		name: "critest", module: "test/tools", packages: "sigs.k8s.io/cri-tools/cmd/critest",
		command: []string{"test", "-c", "-ldflags=-s -w"},
	}.build()
}

// Podstead builds podstead and podstead-supervisor, and returns the path of the
// first; the second is beside it.
func Podstead() (string, error) { return program{name: "podstead", packages: "./cmd/..."}.build() }

// Standin builds what runs in the images of test/critest.
func Standin() (string, error) {
	return program{name: "standin", packages: "podstead/test/critest/standin"}.build()
}

// Containerd builds containerd and runc as their projects have released them,
// and returns the directory that they are in. runc wants a C compiler and
// libseccomp's headers.
func Containerd() (dir string, err error) {
	const module = "test/tools/containerd"
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		if _, err := (program{name: name, module: module, packages: "github.com/containerd/containerd/v2/cmd/" + name}).build(); err != nil {
			return "", err
		}
	}
	runc, err := program{
		name: "runc", module: module, packages: "github.com/opencontainers/runc",
		command: []string{"build", "-tags=seccomp"}, cgo: true,
	}.build()
	return filepath.Dir(runc), err
}

// Validation builds validation programs of runtime-tools, all for "...", with
// runtimetest that they put into containers, and returns the directory that they
// are in, alone.
func Validation(names ...string) (dir string, err error) {
	const module = "github.com/opencontainers/runtime-tools"
	p := program{
		name: "runtimetest", folder: "validation", module: "test/tools/validation",
		command: []string{"build", "-ldflags=-s -w"}, packages: module + "/cmd/runtimetest",
	}
	for _, name := range names {
		p.packages += " " + module + "/validation/" + name
	}
	runtimetest, err := p.build()
	return filepath.Dir(runtimetest), err
}

// program is what is built of a module's packages.
type program struct {
	name     string   // in test/tools/bin
	folder   string   // of test/tools/bin, if not in that itself
	module   string   // its directory in the source tree
	packages string   // one or more, with spaces between
	command  []string // of go; build if empty
	cgo      bool
}

// build builds a program and returns its path. Tests of several packages run at
// once: they take turns, and a program that is already there, and may be
// running, is replaced only by a different one, and as a whole.
func (p program) build() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	bin := filepath.Join(root, "test", "tools", "bin", p.folder)
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", err
	}
	lock, err := os.Open(bin)
	if err != nil {
		return "", err
	}
	defer lock.Close() // which unlocks it
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", bin, err)
	}
	staging, err := os.MkdirTemp(bin, ".new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(staging)
	if err := p.buildInto(staging, filepath.Join(root, p.module)); err != nil {
		return "", err
	}
	built, err := os.ReadDir(staging)
	if err != nil {
		return "", err
	}
	for _, b := range built {
		if err := install(filepath.Join(staging, b.Name()), filepath.Join(bin, b.Name())); err != nil {
			return "", err
		}
	}
	return filepath.Join(bin, p.name), nil
}

func (p program) buildInto(dir, module string) error {
	args := p.command
	if len(args) == 0 {
		args = []string{"build"}
	}
	out := dir + "/" // for packages, each by its name
	if args[0] == "test" {
		out += p.name
	}
	cmd := exec.Command("go", append(append(slices.Clip(args), "-o", out), strings.Fields(p.packages)...)...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if p.cgo {
		cmd.Env = append(cmd.Env, "CGO_ENABLED=1")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", p.packages, err, bytes.TrimSpace(out))
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
